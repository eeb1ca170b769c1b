"""Teams of one and of two processes: SFT takes the same course, and any stage goes on on any team."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.slow

BOUND = 1e-3
"""Of ‖w₁ − w₂‖ relative to the update ‖w₁ − w₀‖, for every tensor."""


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests.resume_ranks has left."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.resume_ranks", str(folder)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=1500,  # a hang, not a slow machine
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def weights(out: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after."""
    tensors = load_file(out / f"{name}.safetensors")
    before, after = (
        {key.removeprefix(f"{when}."): value for key, value in tensors.items() if key.startswith(f"{when}.")}
        for when in ("before", "after")
    )
    assert before.keys() == after.keys()
    return before, after


def figures(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


def gap(out: Path, one: str, other: str) -> float:
    """The largest difference of a tensor in units of its update."""
    (before, first), (start, second) = weights(out, one), weights(out, other)
    moved = [name for name, value in first.items() if not torch.equal(value, before[name])]
    assert moved
    assert all(torch.equal(before[name], start[name]) for name in before)
    assert all(torch.equal(second[name], first[name]) for name in first if name not in moved)
    gaps = [(first[name] - second[name]).norm() / (first[name] - before[name]).norm() for name in moved]
    return float(max(gaps))


@pytest.mark.parametrize(("team", "optimizer"), [
    ("zero1", "DeepSpeedZeroOptimizer"),
    ("two", "DeepSpeedZeroOptimizer"),
    ("zero3", "DeepSpeedZeroOptimizer_Stage3"),
])  # fmt: skip
def test_sft_on_two_processes_takes_the_course_of_one(out: Path, team: str, optimizer: str) -> None:
    assert gap(out, "sft-one", f"sft-{team}") <= BOUND
    assert figures(out, "sft-one")["optimizer"] is None
    assert figures(out, f"sft-{team}")["optimizer"] == optimizer
    (step, one), (again, two) = figures(out, "sft-one")["rows"][0], figures(out, f"sft-{team}")["rows"][0]
    assert step == again
    for name in ("sft/loss_nats_per_token", "sft/gradient_norm", "sft/learning_rate"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


def test_without_synchronization_sft_takes_another_course(out: Path) -> None:
    assert gap(out, "sft-one", "sft-unsynchronized") > 0.1


@pytest.mark.parametrize("name", ["sft-two", "sft-zero3", "reward-two", "ppo-two"])
def test_two_processes_go_on_as_if_nothing_had_happened(out: Path, name: str) -> None:
    stage, _, case = name.partition("-")
    _, straight = weights(out, name)
    _, resumed = weights(out, f"{name}-{case}")
    assert all(torch.equal(resumed[key], value) for key, value in straight.items())
    one, other = figures(out, name), figures(out, f"{name}-{case}")
    if stage == "ppo":
        one = {key: values[-2:] for key, values in one.items()}
    assert one == other


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
@pytest.mark.parametrize(("straight", "resumed"), [("two", "two-one"), ("one", "one-two")])
def test_another_number_of_processes_continues_the_same_course(
    out: Path, stage: str, straight: str, resumed: str
) -> None:
    assert gap(out, f"{stage}-{straight}", f"{stage}-{resumed}") <= BOUND


def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_all(out: Path) -> None:
    assert figures(out, "sft-one-rank-fails")["skipped"] == 1
    _, after = weights(out, "sft-one-rank-fails")
    assert all(bool(value.isfinite().all()) for value in after.values())

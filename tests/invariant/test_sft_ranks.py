"""SFT on teams of one and of two processes: what is not finite on one rank."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.sft_ranks import POISONED

pytestmark = pytest.mark.slow

SAME = ("sft/loss_nats_per_token", "sft/gradient_norm", "sft/learning_rate", "sft/skipped_steps")


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests.sft_ranks has left."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("sft")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.sft_ranks", str(folder)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=1500,  # a hang, not a slow machine
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def figures(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("team", ["zero2", "zero3"])
def test_a_loss_that_is_not_finite_on_one_rank_leaves_its_step_out_on_all(out: Path, team: str) -> None:
    one, other = figures(out, "lose-one"), figures(out, f"lose-{team}")
    assert one["skipped"] == other["skipped"] == len(POISONED)
    assert [step for step, _ in other["rows"]] == [2, 3, 5, 6]
    for (step, expected), (again, found) in zip(one["rows"], other["rows"], strict=True):
        assert step == again
        for name in SAME:
            assert found[name] == pytest.approx(expected[name], rel=1e-3)
    expected, found = (load_file(out / f"{name}.safetensors") for name in ("lose-one", f"lose-{team}"))
    for name, weight in expected.items():
        assert (weight - found[name]).norm() <= 1e-4 * weight.norm(), name

"""Two real processes under the real DeepSpeed train what one process trains without it."""

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

from tests.ranks import CASES

pytestmark = [pytest.mark.slow]
pytest.importorskip("deepspeed")

TRAINED = ("reward", "ppo", "trunk")
SYNCHRONIZED = [name for name in CASES if name not in ("one", "unsynchronized")]
BOUND = 1e-3
"""‖w₁ − w₂‖ ≤ 1e-3 · ‖w₁ − w₀‖, for every tensor: relative to what training has changed."""


class Outcome:
    """What a case left behind."""

    def __init__(self, folder: Path, trained: str, case: str) -> None:
        self.tensors = load_file(folder / f"{trained}-{case}.safetensors")
        self.figures: dict[str, Any] = json.loads((folder / f"{trained}-{case}.json").read_text())
        other = folder / f"{trained}-{case}.rank1.json"
        self.of_other_rank = json.loads(other.read_text()) if other.exists() else None

    def named(self, start: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)
        }


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that tests/ranks.py makes, from one start of Python."""
    out = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ranks", str(out)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def distances(one: Outcome, other: Outcome) -> dict[str, float]:
    """Of every tensor: how far the two are apart, relative to how far training has moved it."""
    after, before, others = (
        x.named(y) for x, y in ((one, "weights."), (one, "before."), (other, "weights."))
    )
    before = {key.removeprefix("weights."): value for key, value in before.items()}
    assert after.keys() == others.keys() == before.keys()
    moved = {key: torch.linalg.vector_norm(after[key] - before[key]) for key in after}
    assert all(value > 0 for value in moved.values())
    return {key: float(torch.linalg.vector_norm(after[key] - others[key]) / moved[key]) for key in after}


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_two_ranks_train_as_one_process_does(folder: Path, trained: str, case: str) -> None:
    one, two = Outcome(folder, trained, "one"), Outcome(folder, trained, case)
    assert max(distances(one, two).values()) <= BOUND
    steps = {key: value for key, value in one.tensors.items() if key.endswith(".step")}
    assert steps
    assert all(int(value) >= 3 for value in steps.values())
    assert all(torch.equal(value, two.tensors[key]) for key, value in steps.items())


@pytest.mark.parametrize("trained", TRAINED)
def test_without_synchronization_the_bound_is_broken(folder: Path, trained: str) -> None:
    one, two = Outcome(folder, trained, "one"), Outcome(folder, trained, "unsynchronized")
    assert max(distances(one, two).values()) > 10 * BOUND


@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_deepspeed_took_the_steps(folder: Path, case: str) -> None:
    stage3 = CASES[case][1] == 3
    expected = "DeepSpeedZeroOptimizer_Stage3" if stage3 else "DeepSpeedZeroOptimizer"
    for trained in TRAINED:
        assert Outcome(folder, trained, case).figures["engine"] == expected
        assert Outcome(folder, trained, "one").figures["engine"] is None


@pytest.mark.parametrize("trained", ["ppo", "trunk"])
@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_the_rollouts_of_a_prompt_do_not_depend_on_who_draws_them(
    folder: Path, trained: str, case: str
) -> None:
    one, two = Outcome(folder, trained, "one"), Outcome(folder, trained, case)
    assert two.figures["responses"] == one.figures["responses"]
    lengths = {len(response) for batch in one.figures["responses"] for response in batch}
    assert len(lengths) > 3  # else nothing of what is said about uneven lengths is shown


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_every_rank_knows_the_same_figures(folder: Path, trained: str, case: str) -> None:
    two = Outcome(folder, trained, case)
    assert two.of_other_rank is not None
    assert {**two.of_other_rank, "rank": 0} == two.figures


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_what_a_checkpoint_holds_does_not_depend_on_the_team(folder: Path, trained: str, case: str) -> None:
    one, two = Outcome(folder, trained, "one"), Outcome(folder, trained, case)
    assert two.tensors.keys() == one.tensors.keys()
    assert {k: v.shape for k, v in two.tensors.items()} == {k: v.shape for k, v in one.tensors.items()}
    assert torch.equal(two.tensors["optimizer_groups"], one.tensors["optimizer_groups"])
    for key, moment in one.tensors.items():
        if key.endswith((".exp_avg", ".exp_avg_sq")):
            assert torch.linalg.vector_norm(moment - two.tensors[key]) <= BOUND * torch.linalg.vector_norm(
                moment
            )
    assert two.figures["restored"]

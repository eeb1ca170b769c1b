"""A number that is not finite, planted anywhere in an iteration of PPO, stays where it arose."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import CASES, FAULTY, KLS, NUMBERS, PLACES

pytest.importorskip("deepspeed")
LEFT_OUT = ("num_unscored_rollouts", "num_nonfinite_rollouts", "num_skipped_steps")
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def out(root: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests.support.faults has left."""
    folder = tmp_path_factory.mktemp("faults")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.faults", str(runs), str(folder)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(params=[(case, kl) for case in CASES for kl in KLS], ids="-".join)
def ranks(out: Path, request: pytest.FixtureRequest) -> list[Results]:
    """By rank, what came of every fault."""
    case, kl = request.param
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"{case}-{kl}.rank*.json"))]


def test_the_state_is_finite_and_resumes(ranks: list[Results]) -> None:
    for results in ranks:
        assert len(results) == 1 + len(PLACES) * len(NUMBERS)
        # `tests.support.faults` resumes from a checkpoint after every iteration.
        assert {fault: result["not_finite"] for fault, result in results.items()} == dict.fromkeys(results)


def test_what_is_left_out_is_counted_once_and_nothing_else_is(ranks: list[Results]) -> None:
    for results in ranks:
        for place, counted in PLACES.items():
            for name in NUMBERS:
                iterations = results[f"{place}, {name}"]["metrics"]
                for number, metrics in enumerate(iterations):
                    counts = {key: metrics[f"ppo/{key}"] for key in LEFT_OUT}
                    expected = dict.fromkeys(LEFT_OUT, 0.0)
                    if number == FAULTY:
                        expected[counted] = 1.0
                    assert counts == expected, (place, name, number)


def test_the_rest_of_the_iteration_is_learned_from(ranks: list[Results]) -> None:
    for results in ranks:
        steps = results["none"]["metrics"][FAULTY]["ppo/num_steps"]
        for place, counted in PLACES.items():
            lost = 1.0 if counted == "num_skipped_steps" else 0.0
            for name in NUMBERS:
                metrics = results[f"{place}, {name}"]["metrics"][FAULTY]
                assert metrics["ppo/num_steps"] == steps - lost
                assert metrics["ppo/gradient_norm"] > 0


def test_the_kl_coefficient_moves_by_the_finite_responses(ranks: list[Results]) -> None:
    for results in ranks:
        moved = results["none"]["kl_coefficient"] != 0.1
        for fault, result in results.items():
            assert (result["kl_coefficient"] != 0.1) == moved, fault
            assert result["kl_coefficient"] == pytest.approx(0.1, rel=1e-2)

"""SFT on two processes takes the course of one, stops, and resumes on as many or on others."""

from pathlib import Path

import pytest
import torch

from tests.support.resume_ranks import CASES
from tests.support.teams import BOUND, Outcome, distances, run_teams

pytestmark = pytest.mark.slow
pytest.importorskip("deepspeed")

ZERO = [name for name in CASES if name.startswith("zero") and CASES[name].origin is None]
PAIRS = [(str(case.origin), name) for name, case in CASES.items() if case.origin]
AGAIN = [(origin, name) for origin, name in PAIRS if CASES[origin][:2] == CASES[name][:2]]
ELSEWHERE = [(origin, name) for origin, name in PAIRS if CASES[origin].size != CASES[name].size]


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests.support.resume_ranks has left."""
    folder = tmp_path_factory.mktemp("ranks")
    run_teams("tests.support.resume_ranks", folder, root)
    return folder


@pytest.mark.parametrize("case", ZERO)
def test_two_processes_take_the_course_of_one(out: Path, case: str) -> None:
    one, two = Outcome(out, "sft", "one"), Outcome(out, "sft", case)
    assert max(distances(one, two).values()) <= BOUND
    (step, first), (again, second) = one.metrics["rows"][0], two.metrics["rows"][0]
    assert step == again >= 3
    for name in ("sft/loss_nats_per_token", "sft/gradient_norm", "sft/learning_rate"):
        assert second[name] == pytest.approx(first[name], rel=1e-4)


@pytest.mark.parametrize("case", ZERO)
def test_deepspeed_took_the_steps(out: Path, case: str) -> None:
    stage3 = CASES[case].zero == 3
    expected = "DeepSpeedZeroOptimizer_Stage3" if stage3 else "DeepSpeedZeroOptimizer"
    assert [metrics["engine"] for metrics in Outcome(out, "sft", case).of_ranks] == [expected] * 2
    assert Outcome(out, "sft", "one").metrics["engine"] is None


def test_without_synchronization_the_bound_is_broken(out: Path) -> None:
    one, two = Outcome(out, "sft", "one"), Outcome(out, "sft", "unsynchronized")
    assert max(distances(one, two).values()) > 100 * BOUND


@pytest.mark.parametrize(("straight", "resumed"), AGAIN)
def test_two_processes_resume_as_if_nothing_had_happened(out: Path, straight: str, resumed: str) -> None:
    one, other = Outcome(out, "sft", straight), Outcome(out, "sft", resumed)
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(value, other.tensors[key]) for key, value in one.tensors.items())
    assert one.metrics == other.metrics


@pytest.mark.parametrize(("straight", "resumed"), ELSEWHERE)
def test_another_number_of_processes_continues_the_same_course(
    out: Path, straight: str, resumed: str
) -> None:
    gaps = distances(Outcome(out, "sft", straight), Outcome(out, "sft", resumed))
    assert max(gaps.values()) <= BOUND


def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_all(out: Path) -> None:
    failed = Outcome(out, "sft", "one-rank-fails")
    assert [metrics["skipped"] for metrics in failed.of_ranks] == [1, 1]
    assert all(bool(value.isfinite().all()) for value in failed.named("weights.").values())

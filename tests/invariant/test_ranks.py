"""Two real processes under the real DeepSpeed train what one process trains without it, also after a stop."""

from pathlib import Path

import pytest
import torch

from tests.support.ranks import CASES, PPO_CUT, RESUMED, TRAININGS
from tests.support.teams import BOUND, Outcome, distances, run_teams

pytestmark = [pytest.mark.slow]
pytest.importorskip("deepspeed")

SYNCHRONIZED = [
    name for name, case in CASES.items() if case.zero and not case.origin and name != "unsynchronized"
]
PAIRS = [(str(case.origin), name) for name, case in CASES.items() if case.origin]
AGAIN = [(origin, name) for origin, name in PAIRS if CASES[origin][:2] == CASES[name][:2]]
ELSEWHERE = [(origin, name) for origin, name in PAIRS if CASES[origin].size != CASES[name].size]


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that tests/support/ranks.py makes, from one start of Python."""
    out = tmp_path_factory.mktemp("ranks")
    run_teams("tests.support.ranks", out, root)
    return out


@pytest.mark.parametrize("trained", TRAININGS)
@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_two_ranks_train_as_one_process_does(folder: Path, trained: str, case: str) -> None:
    one, two = Outcome(folder, trained, "one"), Outcome(folder, trained, case)
    assert max(distances(one, two).values()) <= BOUND
    steps = {key: value for key, value in one.tensors.items() if key.endswith(".step")}
    assert steps
    assert all(int(value) >= 3 for value in steps.values())
    assert all(torch.equal(value, two.tensors[key]) for key, value in steps.items())


@pytest.mark.parametrize("trained", TRAININGS)
def test_without_synchronization_the_bound_is_broken(folder: Path, trained: str) -> None:
    one, two = Outcome(folder, trained, "one"), Outcome(folder, trained, "unsynchronized")
    assert max(distances(one, two).values()) > 100 * BOUND


@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_deepspeed_took_the_steps(folder: Path, case: str) -> None:
    stage3 = CASES[case].zero == 3
    expected = "DeepSpeedZeroOptimizer_Stage3" if stage3 else "DeepSpeedZeroOptimizer"
    for trained in TRAININGS:
        assert Outcome(folder, trained, case).metrics["engine"] == expected
        assert Outcome(folder, trained, "one").metrics["engine"] is None


@pytest.mark.parametrize("trained", ["ppo", "trunk"])
@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_the_rollouts_of_a_prompt_do_not_depend_on_who_draws_them(
    folder: Path, trained: str, case: str
) -> None:
    one, two = Outcome(folder, trained, "one"), Outcome(folder, trained, case)
    assert two.metrics["responses"] == one.metrics["responses"]
    lengths = {len(response) for batch in one.metrics["responses"] for response in batch}
    assert len(lengths) > 3  # else nothing of what is said about uneven lengths is shown


@pytest.mark.parametrize("trained", TRAININGS)
@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_every_rank_knows_the_same_metrics(folder: Path, trained: str, case: str) -> None:
    first, second = Outcome(folder, trained, case).of_ranks
    assert first == second


@pytest.mark.parametrize("trained", TRAININGS)
@pytest.mark.parametrize("case", SYNCHRONIZED)
def test_what_a_checkpoint_holds_does_not_depend_on_how_many_ranks_there_are(
    folder: Path, trained: str, case: str
) -> None:
    one, two = Outcome(folder, trained, "one"), Outcome(folder, trained, case)
    assert two.tensors.keys() == one.tensors.keys()
    assert {k: v.shape for k, v in two.tensors.items()} == {k: v.shape for k, v in one.tensors.items()}
    assert torch.equal(two.tensors["optimizer_groups"], one.tensors["optimizer_groups"])
    for key, moment in one.tensors.items():
        if key.endswith((".exp_avg", ".exp_avg_sq")):
            assert torch.linalg.vector_norm(moment - two.tensors[key]) <= BOUND * torch.linalg.vector_norm(
                moment
            )
    assert two.metrics["restored"]


# Stopped in between.


@pytest.mark.parametrize("trained", RESUMED)
@pytest.mark.parametrize(("straight", "resumed"), AGAIN)
def test_two_processes_go_on_as_if_nothing_had_happened(
    folder: Path, trained: str, straight: str, resumed: str
) -> None:
    one, other = Outcome(folder, trained, straight), Outcome(folder, trained, resumed)
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(value, other.tensors[key]) for key, value in one.tensors.items())
    metrics = dict(one.metrics)
    if trained == "ppo":
        metrics |= {name: metrics[name][PPO_CUT:] for name in ("updates", "responses")}
    assert other.metrics == metrics


@pytest.mark.parametrize("trained", RESUMED)
@pytest.mark.parametrize(("straight", "resumed"), ELSEWHERE)
def test_another_number_of_processes_continues_the_same_course(
    folder: Path, trained: str, straight: str, resumed: str
) -> None:
    one, other = Outcome(folder, trained, straight), Outcome(folder, trained, resumed)
    assert max(distances(one, other).values()) <= BOUND

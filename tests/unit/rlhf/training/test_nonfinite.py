import pytest

from rlhf.errors import UserError
from rlhf.training.nonfinite import MAX_SKIPPED_IN_A_ROW, FiniteGuard

NAN, INFINITY = float("nan"), float("inf")


def test_a_finite_step_ends_a_row_of_skipped_ones_but_not_their_count() -> None:
    guard = FiniteGuard("reward", "")
    assert [guard.passes(metrics) for metrics in ([1.0, NAN], [INFINITY], [0.0, -1.0])] == [
        False,
        False,
        True,
    ]
    assert guard.state() == {"skipped_steps": 2, "skipped_in_a_row": 0}


def test_counts_continue_from_a_checkpoint_until_the_stage_ends() -> None:
    first, second = FiniteGuard("ppo", "Lower it."), FiniteGuard("ppo", "Lower it.")
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        assert not first.passes([NAN])
    second.restore(first.state())
    with pytest.raises(UserError, match=r"^ppo: 3 optimizer steps in a row had a reward") as caught:
        second.passes([NAN])
    assert "Lower it. Then begin this stage again" in str(caught.value)
    assert "checkpoint" not in str(caught.value)

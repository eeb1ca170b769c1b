import pytest

from rlhf.launch import report


@pytest.mark.parametrize(
    ("exit_codes", "status"),
    [
        ({0: 75, 1: 75}, 75),
        ({0: 75, 1: 2}, 2),
        ({0: 75, 1: -9}, 137),
        ({0: -9, 1: 1}, 1),
        ({0: -9, 1: -15}, 137),
        ({0: 70, 1: -6}, 134),
        ({0: 70, 1: -15}, 70),
    ],
    ids=str,
)
def test_the_status_is_of_the_rank_that_failed_and_not_of_those_that_were_told_to_end(
    exit_codes: dict[int, int], status: int
) -> None:
    assert report(exit_codes, "ppo") == status


def test_a_rank_that_was_killed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    report({0: 75, 1: -9}, "ppo")
    assert capsys.readouterr().err == "ppo: rank 1 was killed by signal 9; the other ranks were ended\n"

"""Answers that nobody can tell apart, and scores that only rounding tells apart, give no preference."""

from pathlib import Path

import pytest

from rlhf.data.twins import twins
from tests.unit.rlhf.data.rows import RANKING, jsonl, read_with_counts

PAIR = {"prompt": "p", "chosen": "one\ntwo", "rejected": "three"}
GROUP = {"prompt": "p", "completions": ["a\nb", "c"], "ranks": [1, 2]}


@pytest.mark.parametrize("other", ["one\r\ntwo", "one\rtwo", " one\ntwo\r\n"])
def test_answers_that_differ_in_line_breaks_or_outer_white_space_alone_are_no_pair(
    tmp_path: Path, other: str
) -> None:
    records, counts = read_with_counts(RANKING, jsonl(tmp_path, PAIR, {**PAIR, "rejected": other}))
    assert len(records) == 1
    assert counts.dropped() == {"completions identical": 1}


def test_a_group_of_answers_that_differ_in_line_breaks_alone_is_left_out(tmp_path: Path) -> None:
    rows = (GROUP, {**GROUP, "completions": ["a\nb", "a\r\nb"]})
    records, counts = read_with_counts(RANKING, jsonl(tmp_path, *rows))
    assert len(records) == 1
    assert counts.dropped() == {"completions identical": 1}


@pytest.mark.parametrize(("second", "sign"), [(0.3, 0), (0.29, 1), (0.31, -1)])
def test_scores_that_differ_by_rounding_are_equal(second: float, sign: int) -> None:
    columns = {"score_chosen": 0.1 + 0.2, "score_rejected": second}
    assert {twin.sign for twin in twins(columns, "chosen", "rejected")} == {sign}

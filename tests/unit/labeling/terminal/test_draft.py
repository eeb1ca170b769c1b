"""Entering ranks: where the focus goes, ties where the rules allow them, and every step back."""

import pytest

from labeling.store.judgements import Judgement, Task
from labeling.store.rules import LabelingRules
from labeling.terminal.draft import Draft, rank_sign
from rlhf.data.records import FAILED, Rank
from rlhf.errors import UserError


def draft(size: int = 4, draft: Judgement | None = None, **rules: object) -> Draft:
    texts = tuple(f"answer {n}" for n in range(size))
    task = Task(1, "question", texts, draft or Judgement.empty(size), 0.0)
    return Draft(task, LabelingRules.model_validate(rules))


def ranks(entered: Draft) -> tuple[Rank | None, ...]:
    return entered.judgement.ranks


def test_the_focus_goes_to_the_next_without_a_rank_all_round() -> None:
    entered = draft()
    entered.focus = 2
    seen = []
    for rank in (1, 2, 3, 4):
        entered.rank(rank)
        seen.append(entered.focus)
    assert seen == [3, 0, 1, 2]
    assert entered.final().ranks == (3, 4, 1, 2)


def test_a_draft_begins_at_its_first_gap() -> None:
    assert draft(3, Judgement((1, None, None))).focus == 1
    assert draft(3, Judgement((1, 2, 3))).focus == 0


def test_ties_where_the_rules_allow_them() -> None:
    entered = draft(2)
    entered.rank(1)
    entered.rank(1)
    assert entered.final().ranks == (1, 1)


def test_a_rank_that_is_taken_is_exchanged_where_there_are_no_ties() -> None:
    entered = draft(3, Judgement((1, 2, None)), ties=False)
    entered.focus = 0
    entered.rank(2)
    assert ranks(entered) == (2, 1, None)
    entered.rank(2)  # of the third, which had none
    assert ranks(entered) == (None, 1, 2)
    entered.focus = 1
    entered.rank(FAILED)
    entered.rank(FAILED)
    assert ranks(entered) == (FAILED, FAILED, 2)
    entered.focus = 1
    entered.rank(2)  # a failure is no place in an order: nobody called the third answer failed
    assert ranks(entered) == (FAILED, 2, None)


def test_a_rank_that_there_is_not_is_refused_and_changes_nothing() -> None:
    entered = draft(3)
    with pytest.raises(UserError, match="ranks 1 to 3"):
        entered.rank(4)
    assert entered.judgement == Judgement.empty(3)
    with pytest.raises(UserError, match="no quality scores"):
        entered.score(4)
    scoring = draft(3, quality_scores=True)
    with pytest.raises(UserError, match="from 1 to 7"):
        scoring.score(8)


def test_a_missing_rank_is_named_and_gets_the_focus() -> None:
    entered = draft(3, Judgement((1, 2, None)))
    entered.focus = 0
    with pytest.raises(UserError, match="Answer 3 has no rank"):
        entered.final()
    assert entered.focus == 2


def test_ranks_in_words() -> None:
    assert [rank_sign(rank) for rank in (None, 1, 2, 3, 4, 9, FAILED)] == [
        "·", "1st", "2nd", "3rd", "4th", "9th", "F",
    ]  # fmt: skip

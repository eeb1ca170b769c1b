"""Labels that are missing, or that contradict, make no record in silence."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.rlhf.data.rows import DEMONSTRATION, RANKING, Read, error_of, jsonl, message, read_with_counts

ANSWER = {"prompt": "p", "completion": "c"}
PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
CONTRADICTED = "scores contradict the preference"


def dropped(read: Read, folder: Path, *rows: dict[str, Any], **settings: Any) -> dict[str, int]:
    return read_with_counts(read, jsonl(folder, *rows), **settings)[1].dropped()


@pytest.mark.parametrize("blank", [{"label": None}, {"label": ""}, {}])
@pytest.mark.parametrize("other", [True, False])
def test_an_answer_without_the_verdict_that_others_have_is_left_out(
    tmp_path: Path, blank: dict[str, Any], other: bool
) -> None:
    found = dropped(
        DEMONSTRATION, tmp_path, {**ANSWER, **blank}, {**ANSWER, "label": other}, {**ANSWER, "label": True}
    )
    assert found.pop("no value in `label`, which judges other rows") == 1
    assert sum(found.values()) == (not other)


def test_a_blank_verdict_in_csv_is_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "kto.csv"
    path.write_text("prompt,completion,label\np,a,True\np,b,\np,c,False\n")
    records, counts = read_with_counts(DEMONSTRATION, str(path))
    assert [record.completion for record in records] == ["a"]
    assert sum(counts.dropped().values()) == 2


@pytest.mark.parametrize(
    "lone",
    [
        {"score_chosen": "", "score_rejected": 9},
        {"score_chosen": None, "score_rejected": 9},
        {"score_rejected": 9},
        {"score_chosen": 9},
        {"score_chosen": None, "score_rejected": None},
        {"score_chosen": "", "score_rejected": ""},
        {},
    ],
)
def test_a_pair_without_the_scores_that_others_have_is_left_out(tmp_path: Path, lone: dict[str, Any]) -> None:
    both = {**PAIR, "score_chosen": 8, "score_rejected": 3}
    for read in (RANKING, DEMONSTRATION):
        assert sum(dropped(read, tmp_path, {**PAIR, **lone}, both).values()) == 1


def test_a_pair_that_is_judged_otherwise_needs_no_scores(tmp_path: Path) -> None:
    scored = {**PAIR, "probability": 0.9, "score_chosen": 8, "score_rejected": 3}
    assert dropped(RANKING, tmp_path, {**PAIR, "probability": 0.7}, scored) == {}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "discarded"),
        ("review_status", "Rejected"),
        ("success", False),
        ("finish_reason", "length"),
        ("correctness_math_verify", False),
        ("review_result", False),
        ("verified", False),
        ("meta", {"annotation": {"label": False}}),
    ],
)
def test_more_words_mark_an_answer_as_bad(tmp_path: Path, column: str, value: Any) -> None:
    good: Any = {"status": "submitted", "review_status": "ok", "finish_reason": "stop", "meta": None}
    good = {"meta": {"annotation": {"label": True}}, **ANSWER, column: good.get(column, True)}
    if column == "meta":
        good["meta"] = {"annotation": {"label": True}}
    else:
        del good["meta"]
    found = dropped(DEMONSTRATION, tmp_path, {**ANSWER, column: value}, good)
    [(reason, number)] = found.items()
    assert (reason.startswith("the answer is marked as bad (`"), number) == (True, 1)


@pytest.mark.parametrize(
    "scores",
    [
        {"chosen_win_rate": 0.2, "rejected_win_rate": 0.8},
        {"rm_chosen": -1.0, "rm_rejected": 2.0},
        {"chosen_likes": "1", "rejected_likes": "5"},
        {"chosen_is_safe": False, "rejected_is_safe": True},
        {"is_chosen_correct": False},
        {"is_chosen_correct": False, "is_rejected_correct": True},
        {"chosen_is_toxic": True, "rejected_is_toxic": False},
        {"better_score": 1, "worse_score": 4},
    ],
)
def test_a_pair_of_columns_that_speaks_for_the_rejected_answer_is_left_out(
    tmp_path: Path, scores: dict[str, Any]
) -> None:
    turned: dict[str, Any] = dict(zip(scores, reversed(scores.values()), strict=True))
    agreeing = {**PAIR, **turned} if len(scores) == 2 else {**PAIR, **dict.fromkeys(scores, True)}
    assert dropped(RANKING, tmp_path, {**PAIR, **scores}, agreeing) == {CONTRADICTED: 1}


def test_scores_named_like_the_mapped_columns_are_compared(tmp_path: Path) -> None:
    row = {"prompt": "p", "answer_a": "one", "answer_b": "two"}
    columns = {"chosen": "answer_a", "rejected": "answer_b"}
    rows = [{**row, "votes_a": 9, "votes_b": 2}, {**row, "votes_a": 1, "votes_b": 7}]
    assert dropped(RANKING, tmp_path, *rows, columns=columns) == {CONTRADICTED: 1}


def test_less_harm_is_better_and_ranks_of_the_two_sides_stay_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**PAIR, "chosen_toxicity": 0.9, "rejected_toxicity": 0.1})
    assert "column `chosen_toxicity` (0.9) seems to say" in error_of(RANKING, path)
    harm = {"harm_score_chosen": 1, "harm_score_rejected": 5}
    assert (
        dropped(RANKING, tmp_path, {**PAIR, "chosen_toxicity": 0.1, "rejected_toxicity": 0.9, **harm}) == {}
    )
    path = jsonl(tmp_path, {**PAIR, "chosen_rank": 2, "rejected_rank": 1})
    assert "column `chosen_rank`" in error_of(RANKING, path)


def test_numbers_of_an_unknown_meaning_that_are_higher_for_the_rejected_answer_are_refused(
    tmp_path: Path,
) -> None:
    path = jsonl(tmp_path, {**PAIR, "chosen_depth": 2, "rejected_depth": 5})
    assert "line 1: column `chosen_depth` (2) seems to say which answer" in error_of(RANKING, path)


def test_both_safe_is_no_tie_and_lengths_are_no_judgement(tmp_path: Path) -> None:
    rows = [
        {**PAIR, "chosen_is_safe": True, "rejected_is_safe": True},
        {**PAIR, "chosen_is_safe": True, "rejected_is_safe": True, "chosen_tokens": 3, "rejected_tokens": 9},
        {**PAIR, "chosen_is_safe": True, "rejected_is_safe": False, "chosen_logps": -9, "rejected_logps": -3},
    ]
    records, _ = read_with_counts(RANKING, jsonl(tmp_path, *rows))
    assert [record.ranks for record in records] == [(1, 2)] * 3


@pytest.mark.parametrize(
    ("column", "value"),
    [("selection", 2), ("human", "b"), ("correct", 1), ("prefer", 0), ("votes_a", 3), ("delta", -2.0)],
)
def test_more_columns_that_say_which_answer_is_better_are_refused(
    tmp_path: Path, column: str, value: Any
) -> None:
    path = jsonl(tmp_path, {**PAIR, column: value})
    assert f"line 1: column `{column}`" in error_of(RANKING, path)
    assert dropped(RANKING, tmp_path, {**PAIR, column: value}, ignore=[column]) == {}


def test_votes_that_are_the_opposite_of_the_ranks_are_left_out(tmp_path: Path) -> None:
    group = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [3, 2, 1]}
    rows = [{**group, "upvotes": [30, 4, 1]}, {**group, "upvotes": [1, 4, 30]}]
    assert dropped(RANKING, tmp_path, *rows) == {CONTRADICTED: 1}


def test_comparisons_that_contradict_are_refused(tmp_path: Path) -> None:
    group: dict[str, Any] = {"prompt": "p", "completions": ["a", "b", "c"]}
    for other in ([1, 0, 0.9], [0, 1, 0.2]):
        path = jsonl(tmp_path, {**group, "comparisons": [[0, 1, 0.9], other]})
        assert "line 1: two comparisons of completions 0 and 1 contradict" in error_of(RANKING, path)
    for other in ([1, 0, 0.2], [0, 1, 0.5], [1, 2, 0.9]):
        assert dropped(RANKING, tmp_path, {**group, "comparisons": [[0, 1, 0.9], other]}) == {}


def test_a_number_too_large_to_compare_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**PAIR, "score_chosen": 10**400, "score_rejected": 1})
    assert "line 1: score `score_chosen` is a number too large" in error_of(RANKING, path)


@pytest.mark.parametrize("name", ["better", "probability"])
def test_a_null_in_a_column_that_columns_names_as_a_label_is_left_out(tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {"columns": {name: "p"}}
    if name == "better":
        settings["choices"] = {"0.8": "first"}
    for null in (None, ""):
        found = dropped(RANKING, tmp_path, {**PAIR, "p": 0.8}, {**PAIR, "p": null}, **settings)
        assert list(found.values()) == [1]


def test_messages_count_as_answers_too(tmp_path: Path) -> None:
    talk = [message("user", "u"), message("assistant", "a")]
    rows = [{"messages": talk, "finish_reason": "length"}, {"messages": talk, "finish_reason": "stop"}]
    assert sum(dropped(DEMONSTRATION, tmp_path, *rows).values()) == 1

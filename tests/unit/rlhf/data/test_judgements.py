"""A column that states a preference or a verdict is understood or refused, never passed over."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.records import Demonstration, Ranking
from rlhf.errors import UserError
from tests.unit.rlhf.data.rows import (
    DEMONSTRATION,
    PROMPT,
    RANKING,
    Read,
    error_of,
    jsonl,
    message,
    read_one,
    read_with_counts,
)

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
ANSWER = {"prompt": "p", "completion": "c"}
TWO = {"chosen": "response_0", "rejected": "response_1"}
SAFE = {"prompt": "p", "response_0": "zero", "response_1": "one"}


def used(
    read: Read, folder: Path, *rows: dict[str, Any], **settings: Any
) -> tuple[list[Any], dict[str, int]]:
    """What is read of rows of which one more is good, without that one; and what was left out."""
    good = {**rows[0], **settings.pop("good")}
    records, counts = read_with_counts(read, jsonl(folder, *rows, good), **settings)
    return records[:-1], counts.dropped()


def test_an_answer_marked_as_bad_is_no_demonstration(tmp_path: Path) -> None:
    rows = [{**ANSWER, "label": False}, {**ANSWER, "label": True}]
    records, dropped = used(DEMONSTRATION, tmp_path, *rows, good={"label": True})
    assert len(records) == 1
    assert dropped == {"the answer is marked as bad (`label`)": 1}


@pytest.mark.parametrize(("column", "good"), [("is_safe", True), ("isCorrect", True), ("is_toxic", False)])
def test_other_verdicts_are_understood_too(tmp_path: Path, column: str, good: bool) -> None:
    records, dropped = used(DEMONSTRATION, tmp_path, {**ANSWER, column: not good}, good={column: good})
    assert (records, sum(dropped.values())) == ([], 1)


def test_a_verdict_in_csv_is_read_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "kto.csv"
    path.write_text("prompt,completion,label\np,a,True\np,b,False\np,c,false\n")
    records, counts = read_with_counts(DEMONSTRATION, str(path))
    assert [record.completion for record in records] == ["a"]
    assert counts.used() == 1


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**ANSWER, "label": 0}, "label"),
        ({**ANSWER, "label": "undesirable"}, "label"),
        ({**ANSWER, "label": [False]}, "label"),
        ({**ANSWER, "is_safe": "no"}, "is_safe"),
        ({**ANSWER, "rating": 1}, "rating"),
        ({**ANSWER, "score": "0.1"}, "score"),
        ({**ANSWER, "helpfulness": 0}, "helpfulness"),
        ({"transcript": "\n\nHuman: Hi\n\nAssistant: No.", "rating": 0.0}, "rating"),
        ({"instruction": "i", "output": "o", "quality": "low"}, "quality"),
        ({"question": "q", "answer": "a", "votes": -3}, "votes"),
        ({**ANSWER, "metadata": {"rating": 1, "id": 3}}, "metadata.rating"),
        ({**ANSWER, "kto_tag": "false"}, None),
        ({**ANSWER, "metadata": {"label": False}}, None),
        ({"messages": [message("user", "u"), message("assistant", "a")], "preferred": False}, None),
    ],
)
def test_what_says_how_good_an_answer_is_is_refused_unless_understood(
    tmp_path: Path, row: dict[str, Any], column: str | None
) -> None:
    found = error_of(DEMONSTRATION, jsonl(tmp_path, row))
    assert "data.jsonl" in found
    assert f"line 1: column `{column}`" in found if column else "marked as bad" in found


PREFERENCES = {
    "SafeRLHF": ("better_response_id", 1),
    "SafeRLHF, safety": ("safer_response_id", 0),
    "SafeRLHF, one side": ("is_response_0_safe", False),
    "UltraFeedback": ("overall_score", [8.0, 9.0]),
    "HelpSteer 2": ("preference_strength", -2),
    "HelpSteer 3": ("overall_preference", -3),
    "SHP": ("labels", 0),
    "SHP, score": ("score_A", 4),
    "webgpt": ("score_0", -1.0),
    "summarize from feedback": ("choice", 1),
    "Argilla": ("status", "tie"),
    "Argilla, ratings": ("rating", [8.0, 9.0]),
    "arena": ("winner", "model_b"),
    "arena, tie": ("winner", "tie (bothbad)"),
    "arena, one-hot": ("winner_model_a", 0),
    "arena under another name": ("who", "tie (bothbad)"),
    "PandaLM": ("annotator1", 2),
    "an index": ("chosen_index", 1),
    "a label": ("label", 1),
    "a preference": ("preference", "B"),
    "swapped": ("swapped", True),
    "a margin": ("margin", -0.5),
    "a soft label": ("preference_probability", 0.3),
    "camel case": ("overallPreference", 1),
    "a probability of another name": ("p_chosen", 0.2),
    "a rank of one": ("chosen_rank", 2),
}


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("read", [RANKING, DEMONSTRATION])
def test_what_says_which_answer_is_better_is_refused_unless_understood(
    tmp_path: Path, name: str, read: Read
) -> None:
    column, value = PREFERENCES[name]
    path = jsonl(tmp_path, {**SAFE, column: value})
    found = error_of(read, path, columns=TWO)
    assert f"{path}, line 1: column `{column}`" in found
    assert "`ignore`" in found
    assert read_with_counts(read, path, columns=TWO, ignore=[column])[1].used() == 1


def test_columns_that_state_nothing_pass(tmp_path: Path) -> None:
    others = {
        "id": 3,
        "source": "web",
        "chosen_model": "a",
        "rejected_model": "b",
        "prompt_id": "x",
        "category": "chat",
        "num_tokens": 12,
        "label": None,
        "winner": "a long reason for which this is the one that people liked best of all",
    }
    assert read_one(RANKING, tmp_path, {**PAIR, **others}).ranks == (1, 2)
    assert read_one(DEMONSTRATION, tmp_path, {**ANSWER, "id": 3, "source": "web", "turns": 2})
    assert read_one(PROMPT, tmp_path, {"prompt": "p", "label": "safe", "rating": 1, "winner": "tie"})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen-rating", "rejected-rating"),
        ("chosenReward", "rejectedReward"),
        ("chosen_upvotes", "rejected_upvotes"),
    ],
)
def test_scores_of_the_two_sides_make_ties_and_contradictions(tmp_path: Path, ours: str, theirs: str) -> None:
    rows: list[dict[str, Any]] = [
        {**PAIR, ours: 4, theirs: 4.0},
        {**PAIR, ours: 2, theirs: 5},
        {**PAIR, ours: 2, theirs: None},
        {**PAIR, ours: None, theirs: None},
    ]
    good = {ours: 5, theirs: 2}
    records, dropped = used(RANKING, tmp_path, *rows, good=good)
    assert [record.ranks for record in records] == [(1, 1)]
    left_out = {"scores contradict the preference": 1, "one of two scores is missing": 1}
    assert dropped == {**left_out, f"no value in `{ours}`, which judges other rows": 1}
    records, dropped = used(DEMONSTRATION, tmp_path, *rows, good=good)
    assert records == []
    assert dropped["neither answer is better"] == 1


@pytest.mark.parametrize("value", ["high", [4], True, {"a": 1}])
def test_a_score_of_a_wrong_type_is_refused(tmp_path: Path, value: Any) -> None:
    path = jsonl(tmp_path, {**PAIR, "score_chosen": value, "score_rejected": 3})
    assert "line 1: score `score_chosen` is" in error_of(RANKING, path)


def test_a_null_probability_is_left_out_and_counted(tmp_path: Path) -> None:
    row = {**PAIR, "probability": None}
    for read in (RANKING, DEMONSTRATION):
        assert used(read, tmp_path, row, good={"probability": 0.8}) == ([], {"probability is null": 1})


@pytest.mark.parametrize("values", [[0, 1], [1, 1], [0.0, 1.0], [1.0, 0.5, 0.0]])
def test_an_index_given_as_a_probability_is_refused(tmp_path: Path, values: list[float]) -> None:
    rows = [{**SAFE, "better_response_id": value} for value in values]
    path = jsonl(tmp_path, *rows)
    found = error_of(RANKING, path, columns={**TWO, "probability": "better_response_id"})
    assert f"{path}, line " in found
    assert "may be the number of the better answer" in found


def test_a_probability_by_any_name_passes(tmp_path: Path) -> None:
    rows = [{**SAFE, "label": value} for value in (0, 1, 0.25)]
    path = jsonl(tmp_path, *rows)
    records, _ = read_with_counts(RANKING, path, columns={**TWO, "probability": "label"})
    assert [record.comparisons[0][2] for record in records] == [0.0, 1.0, 0.25]


@pytest.mark.parametrize(
    ("values", "choices"),
    [
        ([0, 1], {"0": "first", "1": "second"}),
        ([1, 2, 0], {"1": "first", "2": "second", "0": "tie"}),
        (["model_a", "model_b", "tie"], {"model_a": "first", "model_b": "second", "tie": "tie"}),
        ([True, False], {"true": "first", "false": "second"}),
        ([1.0, 0.0], {"1": "first", "0": "second"}),
    ],
)
def test_an_index_is_read_as_its_choices_say(
    tmp_path: Path, values: list[Any], choices: dict[str, str]
) -> None:
    path = jsonl(tmp_path, *({**SAFE, "who": value} for value in values))
    settings = {"columns": {**TWO, "better": "who"}, "choices": choices}
    records, _ = read_with_counts(RANKING, path, **settings)
    assert [record.ranks for record in records] == [(1, 2), (2, 1), (1, 1)][: len(values)]
    answers, _ = read_with_counts(DEMONSTRATION, path, **settings)
    assert [answer.completion for answer in answers] == ["zero", "one"]


@pytest.mark.parametrize("value", [2, "first", None, [0], 0.5])
def test_a_choice_that_is_not_explained_is_refused(tmp_path: Path, value: Any) -> None:
    path = jsonl(tmp_path, {**SAFE, "who": value})
    choices = {"0": "first", "1": "second"}
    assert "line 1: " in error_of(RANKING, path, columns={**TWO, "better": "who"}, choices=choices)


@pytest.mark.parametrize("row", [{"ranks": [5, 3]}, {"ranks": [1, 3]}])
def test_ratings_given_as_ranks_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    path = jsonl(tmp_path, {"prompt": "p", "completions": ["a", "b"], **row})
    assert "and there are 2 completions" in error_of(RANKING, path)
    path = jsonl(tmp_path, {"prompt": "p", "completions": ["a", "b"], "ratings": [2, 1]})
    assert "sounds like scores" in error_of(RANKING, path, columns={"ranks": "ratings"})


def test_a_preference_is_stated_once(tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "chosen": "b", "rejected": "a"}
    assert "column `chosen`" in error_of(RANKING, jsonl(tmp_path, row))


NUMBERS = st.integers(-3, 3) | st.floats(-2, 2)
VALUES = (
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "0", "1", "tie", "A", "B", "true", "chosen"])
)
STATEMENTS = st.dictionaries(
    st.sampled_from(
        ["probability", "label", "preference", "winner", "who", "score_chosen", "score_rejected"]
    ),
    VALUES | st.lists(NUMBERS, max_size=2),
    max_size=3,
)


def _swapped(row: dict[str, Any]) -> dict[str, Any]:
    """The same row with its two answers in the other order, and their scores with them."""
    order = {"response_0": "response_1", "score_chosen": "score_rejected"}
    order |= {second: first for first, second in order.items()}
    found = {order.get(name, name): value for name, value in row.items()}
    if isinstance(found.get("probability"), float):
        found["probability"] = 1 - found["probability"]
    if found.get("who") in (0, 1):
        found["who"] = 1 - int(found["who"])
    return found


def _taught(record: Ranking | Demonstration) -> Any:
    """What a record teaches, in whatever order its answers are."""
    if isinstance(record, Demonstration):
        return record.completion
    if record.comparisons is not None:
        [(first, second, probability)] = record.comparisons
        both = zip((first, second), (probability, 1 - probability), strict=True)
        return sorted((record.completions[place], round(value, 9)) for place, value in both)
    return sorted(zip(record.completions, record.ranks or (), strict=True), key=str)


@pytest.mark.parametrize("read", [RANKING, DEMONSTRATION])
def test_swapping_the_answers_and_the_label_teaches_the_same(
    tmp_path_factory: pytest.TempPathFactory, read: Read
) -> None:
    folder = tmp_path_factory.mktemp("swapped")
    probability = st.floats(0.01, 0.99)

    @given(st.lists(probability, min_size=1, max_size=4), st.lists(st.sampled_from([0, 1]), min_size=1))
    def check(probabilities: list[float], better: list[int]) -> None:
        for name, values, choices in (
            ("probability", probabilities, None),
            ("better", better, {"0": "first", "1": "second"}),
        ):
            column = "probability" if name == "probability" else "who"
            rows = [{**SAFE, "prompt": f"p{n}", column: value} for n, value in enumerate(values)]
            settings = {"columns": {**TWO, name: column}, "choices": choices}
            taught = []
            for variant in (rows, [_swapped(row) for row in rows]):
                try:
                    records, _ = read_with_counts(read, jsonl(folder, *variant), **settings)
                    taught.append([_taught(record) for record in records])
                except UserError:  # all of them are ties
                    taught.append([])
            assert taught[0] == taught[1]

    check()


def test_no_label_of_a_wrong_type_ever_passes(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("labels") / "data.jsonl"

    @given(STATEMENTS)
    def check(statements: dict[str, Any]) -> None:
        path.write_text(json.dumps({**PAIR, **statements}))
        try:
            records, _ = read_with_counts(RANKING, str(path))
        except UserError:
            return
        [record] = records
        probability = statements.get("probability")
        scores = [statements.get("score_chosen"), statements.get("score_rejected")]
        stated = [
            name for name in ("label", "preference", "winner") if statements.get(name) not in (None, "")
        ]
        assert not stated
        assert statements.get("who") not in ("tie", "chosen")
        assert probability is None or type(probability) in (int, float)
        if probability is not None:
            assert record.comparisons == ((0, 1, probability),)
        elif "score_chosen" in statements and "score_rejected" in statements and None not in scores:
            assert record.ranks == (1, 1) or "" in scores or float(str(scores[0])) > float(str(scores[1]))

    check()

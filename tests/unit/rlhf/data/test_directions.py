"""What is the wrong way round, a probability of the second answer or scores as ranks, is refused by name."""

from pathlib import Path

import pytest

from tests.unit.rlhf.data.rows import RANKING, error_of, jsonl, read_one

ROW = {"prompt": "p", "response_a": "good", "response_b": "bad"}
FORWARD = {"chosen": "response_a", "rejected": "response_b"}
BACKWARD = {"chosen": "response_b", "rejected": "response_a"}
GROUP = {"prompt": "p", "completions": ["a", "b", "c"]}


@pytest.mark.parametrize(
    "name",
    [
        "prob_b_wins",
        "p_rejected",
        "loser_prob",
        "probability_b",
        "pB",
        "prob_response_b",
        "P(2)",
        "p_a_loses",
    ],
)
def test_a_probability_of_the_second_answer_is_refused(tmp_path: Path, name: str) -> None:
    columns = {**FORWARD, "probability": name}
    found = error_of(RANKING, jsonl(tmp_path, {**ROW, name: 0.05}), columns=columns)
    assert f"`{name}`" in found
    assert "Exchange" in found


@pytest.mark.parametrize(
    "name", ["prob_a_wins", "probability", "p_chosen", "p_a_beats_b", "winner_prob", "p_chosen_over_rejected"]
)
def test_a_probability_of_the_first_answer_is_read(tmp_path: Path, name: str) -> None:
    made = read_one(RANKING, tmp_path, {**ROW, name: 0.9}, columns={**FORWARD, "probability": name})
    assert made.comparisons == ((0, 1, 0.9),)


def test_which_answer_is_the_second_is_told_by_the_columns(tmp_path: Path) -> None:
    columns = {**BACKWARD, "probability": "prob_b_wins"}
    made = read_one(RANKING, tmp_path, {**ROW, "prob_b_wins": 0.05}, columns=columns)
    assert (made.completions[0], made.comparisons) == ("bad", ((0, 1, 0.05),))
    assert "`prob_a_wins`" in error_of(
        RANKING,
        jsonl(tmp_path, {**ROW, "prob_a_wins": 0.9}),
        columns={**columns, "probability": "prob_a_wins"},
    )


@pytest.mark.parametrize("name", ["helpfulness", "quality", "overall", "likert", "score", "rating", "stars"])
def test_a_column_of_scores_is_no_column_of_ranks(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path, {**GROUP, name: [3, 2, 1]})
    assert f"`{name}`" in error_of(RANKING, path, columns={"ranks": name})


@pytest.mark.parametrize("name", ["ranking", "quality_rank", "overall_order"])
def test_a_column_of_ranks_may_say_of_what(tmp_path: Path, name: str) -> None:
    assert read_one(RANKING, tmp_path, {**GROUP, name: [3, 2, 1]}, columns={"ranks": name}).ranks == (3, 2, 1)


def test_comparisons_of_nothing_but_0_and_1_as_integers_may_be_an_index(tmp_path: Path) -> None:
    row = {**GROUP, "comparisons": [[0, 1, 0], [1, 2, 1]]}
    assert "[better, worse, 1.0]" in error_of(RANKING, jsonl(tmp_path, row))


def test_comparisons_in_the_order_of_completions_may_have_a_probability_of_0(tmp_path: Path) -> None:
    row = {**GROUP, "comparisons": [[0, 1, 0.0], [1, 2, 1.0]]}
    assert read_one(RANKING, tmp_path, row).comparisons == ((0, 1, 0.0), (1, 2, 1.0))


def test_comparisons_with_the_better_first_are_read(tmp_path: Path) -> None:
    row = {**GROUP, "comparisons": [[0, 1, 1.0], [1, 2, 1.0]]}
    assert read_one(RANKING, tmp_path, row).comparisons == ((0, 1, 1.0), (1, 2, 1.0))

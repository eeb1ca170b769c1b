"""Scripted labelers: what they say without errors, how often they err, and how that is measured."""

import random
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.config import RankingsSettings
from labeling.generation.rankings import ScriptedLabeler, label
from labeling.store.items import Item
from rlhf.errors import UserError

SCORER = "def size(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
SCORES = st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=9)


@pytest.fixture
def scorer(tmp_path: Path) -> str:
    """A scorer for which longer is better."""
    (tmp_path / "gold.py").write_text(SCORER)
    return f"{tmp_path / 'gold.py'}:size"


def items(num: int, num_completions: int = 2) -> list[Item]:
    return [
        Item(prompt=f"prompt {n}", completions=tuple("x" * (k + 1) for k in range(num_completions)))
        for n in range(num)
    ]


@given(SCORES)
def test_without_errors_a_rank_is_one_more_than_the_number_of_better_completions(scores: list[float]) -> None:
    ranks = ScriptedLabeler(error_rate=0.0, tie_width=0.0).ranks(scores, random.Random(0))
    assert list(ranks) == [1 + sum(other > score for other in scores) for score in scores]


@given(SCORES, st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 100))
def test_ranks_are_an_order_with_ties_whatever_the_errors(
    scores: list[float], error_rate: float, tie_width: float, seed: int
) -> None:
    ranks = ScriptedLabeler(error_rate, tie_width).ranks(scores, random.Random(seed))
    assert list(ranks) == [1 + sum(other < rank for other in ranks) for rank in ranks]


def test_scores_within_the_tie_width_tie() -> None:
    labeler = ScriptedLabeler(error_rate=0.0, tie_width=0.25)
    assert labeler.ranks([0.0, 0.25, 1.0], random.Random(0)) == (2, 2, 1)


@pytest.mark.parametrize(("completions", "wrong"), [(("x", "xx"), 0.2), (("xx", "yy"), 0.2)])
def test_a_comparison_is_wrong_as_often_as_the_error_rate_says(
    scorer: str, completions: tuple[str, str], wrong: float
) -> None:
    num = 4000
    group = [Item(prompt=f"prompt {n}", completions=completions) for n in range(num)]
    settings = RankingsSettings(scorer=scorer, error_rate=0.2)
    right = label([group[0]], RankingsSettings(scorer=scorer), seed=0).rankings[0].ranks
    erring = [ranking.ranks for ranking in label(group, settings, seed=0).rankings]
    share = sum(ranks != right for ranks in erring) / num
    assert share == pytest.approx(wrong, abs=4 * (wrong * (1 - wrong) / num) ** 0.5)


def test_an_error_in_a_tie_is_a_coins_choice() -> None:
    labeler = ScriptedLabeler(error_rate=0.5, tie_width=0.0)
    drawn = [labeler.ranks([0.3, 0.3], random.Random(seed)) for seed in range(2000)]
    shares = [drawn.count(ranks) / len(drawn) for ranks in ((1, 1), (1, 2), (2, 1))]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.05)


def test_preferring_lower_turns_the_order_around(scorer: str) -> None:
    higher = label(items(1, 4), RankingsSettings(scorer=scorer), seed=0)
    lower = label(items(1, 4), RankingsSettings(scorer=scorer, prefer="lower"), seed=0)
    assert higher.rankings[0].ranks == (4, 3, 2, 1)
    assert lower.rankings[0].ranks == (1, 2, 3, 4)
    assert higher.scores == lower.scores
    assert higher.accuracy is not None
    assert lower.accuracy is not None
    assert higher.accuracy.value == lower.accuracy.value == 1.0


def test_an_items_ranks_depend_on_no_other_item(scorer: str) -> None:
    settings = RankingsSettings(scorer=scorer, error_rate=0.3)
    together = label(items(50, 4), settings, seed=5).rankings
    alone = [label([item], settings, seed=5).rankings[0] for item in reversed(items(50, 4))]
    assert together == alone[::-1]


def test_items_err_independently_and_with_the_seed(scorer: str) -> None:
    settings = RankingsSettings(scorer=scorer, error_rate=0.3)
    first, second = (label(items(40, 4), settings, seed=seed).rankings for seed in (1, 2))
    assert first != second
    assert any(a.ranks != b.ranks for a, b in pairwise(first))


def test_accuracy_counts_the_pairs_that_differ_by_hand(scorer: str) -> None:
    settings = RankingsSettings(scorer=scorer, error_rate=0.25, tie_width=1.0)
    labels = label(items(30, 3), settings, seed=3)  # scores 1, 2, 3: only the first and the last differ
    right = []
    for ranking in labels.rankings:
        assert ranking.ranks is not None
        first, _, last = (int(rank) for rank in ranking.ranks)
        right.append(1.0 if last < first else 0.5 if last == first else 0.0)
    assert labels.accuracy is not None
    assert labels.accuracy.value == pytest.approx(sum(right) / 30)
    tied = sum(a == b for r in labels.rankings for a, b in combinations(r.ranks or (), 2))
    assert labels.tied_ratio == pytest.approx(tied / 90)


def test_a_ranking_says_who_labelled_it(scorer: str) -> None:
    [ranking] = label(items(1), RankingsSettings(scorer=scorer), seed=0).rankings
    assert ranking.annotator == f"scripted:{scorer}"


def test_a_scorer_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"scorer nothing\.py:score: there is no such file"):
        label(items(1), RankingsSettings(scorer="nothing.py:score"), seed=0)


def test_an_item_without_a_score_for_every_completion_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("def f(p, r): return [None if text == 'w0' else len(text) for text in r]\n")
    group = items(4, 3)
    one = replace(group[1], completions=("w0", *group[1].completions[1:]))
    labels = label([group[0], one, *group[2:]], RankingsSettings(scorer=f"{path}:f"), seed=0)
    assert [ranking.prompt for ranking in labels.rankings] == [group[n].prompt for n in (0, 2, 3)]
    with pytest.raises(UserError, match="no score for some completion of each of 1 items"):
        label([one], RankingsSettings(scorer=f"{path}:f"), seed=0)

"""Consensus rankings, their ties and circles, and the strengths of models."""

import math
import random
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.analysis.consensus import consensus, kendall_tau
from labeling.analysis.strengths import bradley_terry
from labeling.store.judgements import implied_pairs
from labeling.store.project import StoredItem
from rlhf.data.records import Rank
from tests.unit.labeling.made import label

RANKINGS = st.integers(2, 5).flatmap(
    lambda num: st.lists(
        st.lists(st.one_of(st.integers(1, num), st.just("F")), min_size=num, max_size=num),
        min_size=1,
        max_size=5,
    )
)


def test_one_ranking_is_its_own_consensus() -> None:
    found = consensus([(2, "F", 1, 2)])
    assert (found.ranks, found.ties, found.cycles) == ((2, "F", 1, 2), ((0, 3),), ())


def test_a_majority_decides_and_even_votes_tie() -> None:
    assert consensus([(1, 2), (1, 2), (2, 1)]).ranks == (1, 2)
    even = consensus([(1, 2), (2, 1)])
    assert (even.ranks, even.ties, even.cycles) == ((1, 1), ((0, 1),), ())


def test_a_circle_is_a_shared_rank_that_is_reported() -> None:
    found = consensus([(1, 2, 3, 4), (3, 1, 2, 4), (2, 3, 1, 4)])
    assert (found.ranks, found.ties, found.cycles) == ((1, 1, 1, 4), (), ((0, 1, 2),))


def test_failed_is_what_more_than_half_say() -> None:
    assert consensus([("F", 1), ("F", 1), (1, 2)]).ranks == ("F", 1)
    assert consensus([("F", 1), (1, 2)]).ranks == (1, 1)


def test_ties_that_do_not_carry_over_leave_what_was_decided() -> None:
    """First ties second, second ties third, and first beats third: the balance of votes orders them."""
    found = consensus([(1, 1, 2), (1, 2, 2), (1, 2, 3), (2, 1, 1), (1, 1, 1), (2, 2, 1), (1, 2, 1)])
    assert found.cycles == ()
    assert isinstance(found.ranks[0], int)
    assert isinstance(found.ranks[2], int)
    assert found.ranks[0] < found.ranks[2]


@given(RANKINGS)
def test_without_a_circle_nobody_stands_above_one_that_beats_them(rankings: list[list[Rank]]) -> None:
    found = consensus(rankings)
    votes = dict.fromkeys(permutations(range(len(rankings[0])), 2), 0)
    for ranks in rankings:
        for first, second, better in implied_pairs(ranks):
            votes[first, second] += better
            votes[second, first] -= better
    in_circle = {k for group in found.cycles for k in group}
    place = [math.inf if rank == "F" else rank for rank in found.ranks]
    alive = [k for k in range(len(place)) if found.ranks[k] != "F"]
    for first, second in permutations(alive, 2):
        apart = not {first, second} <= in_circle
        chain = _reaches(votes, alive, second, first)
        if apart and votes[first, second] > 0 and not chain:
            assert place[first] < place[second]


def _reaches(votes: dict[tuple[int, int], int], alive: list[int], start: int, end: int) -> bool:
    """Whether steps to somebody who is not better lead from `start` to `end`."""
    seen, todo = {start}, [start]
    while todo:
        here = todo.pop()
        for other in alive:
            if other != here and other not in seen and votes[here, other] >= 0:
                seen.add(other)
                todo.append(other)
    return end in seen


@given(RANKINGS, st.randoms(use_true_random=False))
def test_a_consensus_does_not_depend_on_the_order_of_labelers_or_completions(
    rankings: list[list[Rank]], rng: random.Random
) -> None:
    found = consensus(rankings)
    order = list(range(len(rankings[0])))
    rng.shuffle(order)
    mixed = [[ranks[k] for k in order] for ranks in rng.sample(rankings, len(rankings))]
    assert consensus(mixed).ranks == tuple(found.ranks[k] for k in order)


def test_kendalls_tau_by_hand() -> None:
    assert kendall_tau((1, 2, 3), (1, 2, 3)) == 1.0
    assert kendall_tau((1, 2, "F"), ("F", 2, 1)) == -1.0
    assert kendall_tau((1, 1, 1), (1, 2, 3)) is None
    # Two of three pairs agree and one is tied on one side: 2 / sqrt(2 x 3).
    assert kendall_tau((1, 2, 2), (1, 2, 3)) == pytest.approx(2 / math.sqrt(6))


def item(item_id: int, models: tuple[str, ...]) -> StoredItem:
    return StoredItem(item_id, str(item_id), "item", "p", tuple("abcd"[: len(models)]), models, None)


def test_strengths_of_two_models_are_the_log_odds_of_a_win() -> None:
    items = [item(n, ("a", "b")) for n in range(40)]
    labels = [label(n, "ann", (1, 2) if n < 30 else (2, 1)) for n in range(40)]
    strong, weak = bradley_terry(items, labels)
    assert (strong.model, weak.model, strong.num_pairs) == ("a", "b", 40)
    assert strong.strength is not None
    assert weak.strength is not None
    assert strong.strength.value - weak.strength.value == pytest.approx(math.log(3))
    assert strong.strength.value == pytest.approx(-weak.strength.value)
    assert strong.strength.low < strong.strength.value < strong.strength.high


def test_strengths_are_found_again_in_simulated_comparisons() -> None:
    truth = {"a": 0.8, "b": 0.0, "c": -0.8}
    rng = np.random.default_rng(0)
    items = [item(n, ("a", "b", "c")) for n in range(3000)]
    labels = []
    for n in range(3000):
        utilities = [truth[m] + rng.gumbel() for m in "abc"]  # pairs are Bradley-Terry
        labels.append(label(n, "ann", [1 + sum(u > own for u in utilities) for own in utilities]))
    found = {each.model: each.strength for each in bradley_terry(items, labels, num_resamples=20)}
    for model, strength in truth.items():
        estimate = found[model]
        assert estimate is not None
        assert estimate.value == pytest.approx(strength, abs=0.08)


def test_a_model_that_never_loses_has_no_finite_strength() -> None:
    found = bradley_terry([item(n, ("a", "b")) for n in range(5)], [label(n, "x", (1, 2)) for n in range(5)])
    assert [each.strength for each in found] == [None, None]
    assert bradley_terry([item(1, ("a", "a"))], [label(1, "x", (1, 2))]) == []

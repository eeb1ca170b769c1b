"""The ranking loss: hand arithmetic, a float64 brute force, and what must not change it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from reward.loss import Pair, collate, ranked_pairs, ranking_loss

F = math.inf

RANKS = st.lists(st.sampled_from([1.0, 2.0, 3.0, F]), min_size=2, max_size=6)
SCORES = st.floats(-30, 30, allow_nan=False)


def scores_for(ranks: list[float]) -> st.SearchStrategy[tuple[list[float], list[float]]]:
    return st.tuples(st.just(ranks), st.lists(SCORES, min_size=len(ranks), max_size=len(ranks)))


GROUP = RANKS.flatmap(scores_for)


def loss_of(
    scores: list[float], groups: list[list[Pair]], sizes: list[int], tie_margin: float = 0.0
) -> float:
    pairs = collate(groups, sizes)
    return float(ranking_loss(torch.tensor(scores, dtype=torch.float64), pairs, tie_margin=tie_margin))


def brute_force(groups: list[tuple[list[float], list[float]]], tie_margin: float | None) -> float:
    """Mean over groups of the mean cost of all unordered pairs, straight from the definition."""
    means = []
    for ranks, scores in groups:
        costs = []
        for i in range(len(ranks)):
            for j in range(i):
                if ranks[i] == ranks[j] == F or (ranks[i] == ranks[j] and tie_margin is None):
                    continue
                margin = scores[i] - scores[j]
                if ranks[i] == ranks[j]:
                    assert tie_margin is not None
                    excess = max(abs(margin) - tie_margin, 0.0)
                    costs.append(math.log(2 * math.cosh(excess / 2)))
                else:
                    costs.append(math.log1p(math.exp(margin if ranks[i] > ranks[j] else -margin)))
        if costs:
            means.append(sum(costs) / len(costs))
    return sum(means) / len(means)


def test_two_completions_cost_minus_log_sigmoid_of_the_margin() -> None:
    pairs = ranked_pairs([1, 2], with_ties=False)
    for margin in (-3.0, 0.0, 0.7, 40.0):
        expected = float(-logsigmoid(torch.tensor(margin, dtype=torch.float64)))
        assert loss_of([margin + 1.5, 1.5], [pairs], [2]) == pytest.approx(expected, rel=1e-6)


def test_three_completions_by_hand() -> None:
    # ranks 2, 1, F with scores 0, 1, -1: pairs (1,0), (0,2), (1,2) with margins 1, 1, 2
    expected = (2 * math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 3
    assert loss_of([0.0, 1.0, -1.0], [ranked_pairs([2, 1, F], with_ties=False)], [3]) == pytest.approx(
        expected
    )


def test_a_group_counts_once_however_many_pairs_it_has() -> None:
    many, one = ranked_pairs([1, 2, 3, 4], with_ties=False), ranked_pairs([1, 2], with_ties=False)
    large, small = [0.3, -0.2, 0.9, 0.1], [0.5, 2.0]
    both = loss_of(large + small, [many, one], [4, 2])
    assert both == pytest.approx((loss_of(large, [many], [4]) + loss_of(small, [one], [2])) / 2)


@given(st.lists(GROUP, min_size=1, max_size=5), st.sampled_from([None, 0.0, 0.5, 3.0]))
def test_it_is_the_brute_force_over_all_pairs(
    groups: list[tuple[list[float], list[float]]], tie_margin: float | None
) -> None:
    found = [ranked_pairs(ranks, with_ties=tie_margin is not None) for ranks, _ in groups]
    kept = [(pairs, scores) for pairs, (_, scores) in zip(found, groups, strict=True) if pairs]
    if not kept:
        return
    loss = loss_of(
        [score for _, scores in kept for score in scores],
        [pairs for pairs, _ in kept],
        [len(scores) for _, scores in kept],
        tie_margin or 0.0,
    )
    # weights are float32: 1e-6 of the loss
    assert loss == pytest.approx(brute_force(groups, tie_margin), rel=1e-5, abs=1e-6)


def test_failed_is_below_everything_and_two_failed_give_no_pair() -> None:
    assert ranked_pairs([F, 7, F], with_ties=True) == [Pair(1, 0, 1.0), Pair(1, 2, 1.0)]
    assert ranked_pairs([F, F], with_ties=True) == []


def test_ties_give_no_pair_unless_asked_for() -> None:
    assert ranked_pairs([1, 1, 2], with_ties=False) == [Pair(0, 2, 1.0), Pair(1, 2, 1.0)]
    assert ranked_pairs([1, 1], with_ties=True) == [Pair(0, 1, 0.5, is_tie=True)]
    assert ranked_pairs([2, 2], with_ties=False) == []


def test_swapping_chosen_and_rejected_negates_the_margin() -> None:
    scores = torch.tensor([0.4, -1.1])
    forward = collate([ranked_pairs([1, 2], with_ties=False)], [2]).margins(scores)
    backward = collate([ranked_pairs([2, 1], with_ties=False)], [2]).margins(scores)
    assert torch.equal(forward, -backward)


@given(st.floats(0, 1), SCORES)
def test_a_soft_label_says_the_same_from_both_ends(target: float, margin: float) -> None:
    forward = loss_of([margin, 0.0], [[Pair(0, 1, target)]], [2])
    backward = loss_of([margin, 0.0], [[Pair(1, 0, 1 - target)]], [2])
    assert forward == pytest.approx(backward, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
def test_a_soft_label_is_content_where_sigmoid_of_the_margin_is_the_label(target: float) -> None:
    margin = math.log(target / (1 - target))
    scores = torch.tensor([margin, 0.0], dtype=torch.float64, requires_grad=True)
    ranking_loss(scores, collate([[Pair(0, 1, target)]], [2])).backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros(2, dtype=torch.float64), atol=1e-7, rtol=0)


def test_a_tie_pulls_nothing_inside_its_margin_and_inwards_outside() -> None:
    pairs = collate([ranked_pairs([1, 1], with_ties=True)], [2])
    for margin, sign in ((0.0, 0), (0.9, 0), (-0.9, 0), (1.5, 1), (-1.5, -1)):
        scores = torch.tensor([margin, 0.0], requires_grad=True)
        ranking_loss(scores, pairs, tie_margin=1.0).backward()
        assert scores.grad is not None
        assert torch.sign(scores.grad[0]) == sign


def test_a_tie_with_no_margin_is_the_soft_label_one_half() -> None:
    tie, half = ranked_pairs([1, 1], with_ties=True), [Pair(0, 1, 0.5)]
    assert loss_of([1.3, 0.2], [tie], [2]) == pytest.approx(loss_of([1.3, 0.2], [half], [2]))


@given(st.lists(SCORES, min_size=4, max_size=4), SCORES)
def test_a_constant_added_to_a_group_changes_nothing(scores: list[float], constant: float) -> None:
    pairs = [ranked_pairs([1, 2, 2, F], with_ties=True)]
    moved = [score + constant for score in scores]
    assert loss_of(moved, pairs, [4], 0.3) == pytest.approx(loss_of(scores, pairs, [4], 0.3), abs=1e-6)


def test_parts_of_a_step_add_up_to_the_whole_with_the_same_gradients() -> None:
    groups = [ranked_pairs(r, with_ties=True) for r in ([1, 2, 3], [1, 1], [F, 2, 2, 1], [2, 1])]
    sizes = [3, 2, 4, 2]
    scores = torch.randn(
        11, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    ranking_loss(scores, collate(groups, sizes)).backward()
    whole, scores.grad = scores.grad, None
    for part in (slice(0, 1), slice(1, 3), slice(3, 4)):
        start, count = sum(sizes[: part.start]), sum(sizes[part])
        pairs = collate(groups[part], sizes[part], num_groups=4)
        ranking_loss(scores[start : start + count], pairs).backward()
    torch.testing.assert_close(scores.grad, whole)

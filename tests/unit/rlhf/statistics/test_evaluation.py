"""Statistics against cases whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.statistics.evaluation import (
    accuracy_by_margin,
    best_of_n_kl,
    calibration_error,
    distinct_n,
    pair_accuracy,
    pearson,
    spearman,
)

FINITE = st.floats(-50, 50, allow_nan=False)


def test_accuracy_counts_an_equal_score_half() -> None:
    estimate = pair_accuracy([2.0, -1.0, 0.0, 3.0], [0, 1, 2, 3])
    assert estimate is not None
    assert estimate.value == 2.5 / 4
    assert estimate.low <= estimate.value <= estimate.high


def test_no_pairs_have_no_accuracy() -> None:
    assert pair_accuracy([], []) is None
    assert calibration_error([], []) is None


@given(st.lists(FINITE, min_size=1, max_size=40))
def test_turning_every_pair_around_turns_the_accuracy_around(margins: list[float]) -> None:
    prompts = list(range(len(margins)))
    forward, backward = pair_accuracy(margins, prompts), pair_accuracy([-m for m in margins], prompts)
    assert forward is not None
    assert backward is not None
    assert forward.value == pytest.approx(1 - backward.value)


def test_an_interval_is_the_same_for_the_same_seed() -> None:
    margins, prompts = np.random.default_rng(0).normal(0.5, 1, 97), np.sqrt(np.arange(97)).astype(int)
    assert pair_accuracy(margins, prompts, seed=1) == pair_accuracy(margins, prompts, seed=1)
    assert pair_accuracy(margins, prompts, seed=1) != pair_accuracy(margins, prompts, seed=2)


def test_the_interval_of_independent_pairs_is_the_binomial_one() -> None:
    margins = np.where(np.arange(400) < 300, 1.0, -1.0)
    estimate = pair_accuracy(margins, np.arange(400))
    assert estimate is not None
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert estimate.low == pytest.approx(0.75 - half, abs=0.006)
    assert estimate.high == pytest.approx(0.75 + half, abs=0.006)


def test_repeating_every_pair_within_its_prompt_does_not_shrink_the_interval() -> None:
    margins, prompts = np.random.default_rng(3).normal(0.4, 1, 50), np.arange(50)
    once = pair_accuracy(margins, prompts)
    assert pair_accuracy(np.repeat(margins, 6), np.repeat(prompts, 6)) == once


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        difficulty = generator.uniform(0.4, 1.0, 60)  # pairs of one prompt go together; the truth is 0.7
        right = generator.random((60, 4)) < difficulty[:, None]
        estimate = pair_accuracy(
            np.where(right, 1.0, -1.0).ravel(), np.repeat(np.arange(60), 4), num_resamples=400
        )
        assert estimate is not None
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.89 <= covered / 200 <= 0.99


def test_accuracy_by_margin_goes_from_the_smallest_to_the_largest() -> None:
    assert accuracy_by_margin([0.1, -0.2, 5.0, 6.0, -0.3, 7.0, 1.0, -2.0]) == [0.5, 0.5, 0.5, 1.0]
    assert accuracy_by_margin([1.0, 2.0]) is None


def test_labels_drawn_from_the_model_are_calibrated_and_certain_ones_are_not() -> None:
    generator = np.random.default_rng(0)
    margins = generator.normal(0, 2, 40_000)
    probability = 1 / (1 + np.exp(-margins))
    hard = (generator.random(margins.size) < probability).astype(float)
    honest = calibration_error(margins, hard)
    boastful = calibration_error(4 * margins, hard)
    assert honest is not None
    assert honest < 0.01
    assert boastful is not None
    assert boastful > 0.08


def test_soft_labels_equal_to_the_prediction_have_no_calibration_error() -> None:
    margins = np.linspace(-6, 6, 301)
    assert calibration_error(margins, 1 / (1 + np.exp(-margins))) == pytest.approx(0, abs=1e-12)


def test_calibration_by_hand() -> None:
    assert calibration_error([0.0], [1.0]) == pytest.approx(0.5)  # whichever way it is turned
    assert calibration_error([800.0, -800.0], [1.0, 0.0]) == pytest.approx(0)


@given(st.lists(st.tuples(FINITE, st.floats(0, 1)), min_size=1, max_size=50))
def test_calibration_error_is_between_0_and_1(pairs: list[tuple[float, float]]) -> None:
    error = calibration_error([m for m, _ in pairs], [t for _, t in pairs])
    assert error is not None
    assert 0 <= error <= 1


def test_correlations_of_known_data() -> None:
    x = [1.0, 2.0, 3.0, 4.0]
    assert pearson(x, [2.0, 4.0, 6.0, 8.0]) == pytest.approx(1)
    assert spearman(x, [1.0, 10.0, 100.0, 1e6]) == pytest.approx(1)
    assert spearman(x, [-1.0, -2.0, -2.5, -9.0]) == pytest.approx(-1)
    assert spearman([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) == pytest.approx(math.sqrt(3) / 2)  # ranks 1.5, 1.5, 3


def test_a_constant_correlates_with_nothing() -> None:
    assert pearson([1.0, 1.0], [1.0, 2.0]) is None
    assert spearman([1.0], [2.0]) is None


@given(st.lists(FINITE, min_size=2, max_size=30, unique=True))
def test_rank_correlation_sees_only_the_order(values: list[float]) -> None:
    order = np.argsort(np.argsort(values)).astype(float)
    assert spearman(values, order) == pytest.approx(1)


def test_best_of_n_by_hand() -> None:
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_kl_of_best_of_n_never_exceeds_its_bound(n: int) -> None:
    """Exact KL of best-of-n for a few discrete distributions whose outcomes are ordered by reward."""
    for probabilities in ([0.5, 0.5], [0.9, 0.1], np.full(1000, 1e-3), np.arange(1, 30) / sum(range(1, 30))):
        p = np.asarray(probabilities)
        below = np.concatenate([[0.0], p.cumsum()])
        best = below[1:] ** n - below[:-1] ** n
        kept = best > 0
        assert (best[kept] * np.log(best[kept] / p[kept])).sum() <= best_of_n_kl(n) + 1e-9


def test_distinct_bigrams_by_hand() -> None:
    assert distinct_n(["a b a b"], 2) == 2 / 3
    assert distinct_n(["a b", "a b"], 2) == 0.5
    assert distinct_n(["a", ""], 2) == 0
    assert distinct_n(["x  y\nz"], 1) == 1

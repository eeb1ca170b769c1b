"""How far labelers agree, with intervals.

A unit is one pair of completions of one item, and a labeler's value of it what their ranks imply: 0 (the
first is better), 1 (a tie) or 2 (the second is better). For K = 2 that is the label itself. A pair that a
labeler's ranks do not compare (both failed) has no value of theirs.

Pairs of one item are not independent, so intervals are percentile bootstraps over whole items (Efron and
Tibshirani 1993, chapter 13). Every coefficient here is a function of counts that add up over items, so a
resample is a weighted sum and all resamples are one matrix product; that is why the coefficients are written
out here and not taken from a library, which computes each from all ratings at once.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from labeling.store.judgements import implied_pairs
from labeling.store.labels import Label
from rlhf.statistics.evaluation import Estimate

# Shapes: N items, U units (pairs of completions), L labelers, C = 3 values, F features, B resamples.

NUM_VALUES = 3
FIRST, TIE, SECOND = range(NUM_VALUES)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class Ratings:
    """What every labeler says of every unit."""

    labelers: tuple[str, ...]
    values_UL: Ints
    """0, 1 or 2; −1 where the labeler says nothing."""
    item_U: Ints
    """The item of each unit, as an index of `item_ids`."""
    item_ids: tuple[int, ...]

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @staticmethod
    def of(labels: Iterable[Label]) -> "Ratings":
        """The pairs that labels imply; labelers in the order of their names."""
        labels = list(labels)
        names = sorted({label.labeler for label in labels})
        column = {name: number for number, name in enumerate(names)}
        units: dict[tuple[int, int, int], int] = {}
        entries: list[tuple[int, int, int]] = []
        for label in labels:
            for first, second, better in implied_pairs(label.ranks):
                unit = units.setdefault((label.item_id, first, second), len(units))
                entries.append((unit, column[label.labeler], TIE - better))
        values_UL = np.full((len(units), len(names)), -1, dtype=np.int64)
        for unit, labeler, value in entries:
            values_UL[unit, labeler] = value
        order = sorted(units, key=lambda key: key)
        rows = np.array([units[key] for key in order], dtype=np.int64)
        ids, item_U = np.unique(np.array([key[0] for key in order], dtype=np.int64), return_inverse=True)
        return Ratings(tuple(names), values_UL[rows], item_U, tuple(ids.tolist()))

    def columns(self, *labelers: str) -> "Ratings":
        """The ratings of these labelers alone."""
        chosen = [self.labelers.index(name) for name in labelers]
        return Ratings(labelers, self.values_UL[:, chosen], self.item_U, self.item_ids)

    def counts_UC(self) -> Floats:
        """How many labelers gave each value to each unit."""
        return np.stack(
            [(self.values_UL == value).sum(axis=1) for value in range(NUM_VALUES)], axis=1
        ).astype(np.float64)


@dataclass(frozen=True)
class Agreement:
    """Coefficients with 95 % intervals; None where the ratings do not determine one."""

    num_units: int
    """Pairs of completions that two labelers or more judged."""
    pairwise: Estimate | None
    fleiss: Estimate | None
    krippendorff_nominal: Estimate | None
    krippendorff_ordinal: Estimate | None
    unanimous_items: int
    """Items with two labels or more in which every pair has one value only."""
    compared_items: int
    """Items with two labels or more."""


def agreement(ratings: Ratings, *, seed: int = 0, num_resamples: int = 1000) -> Agreement:
    """How far all labelers together agree."""
    counts_UC = ratings.counts_UC()
    num_U = counts_UC.sum(axis=1)
    shared = num_U >= 2
    counts_UC, num_U, item_U = counts_UC[shared], num_U[shared], ratings.item_U[shared]
    agreeing_U = (counts_UC * (counts_UC - 1)).sum(axis=1) / np.maximum(num_U * (num_U - 1), 1)
    coincidences_UCC = (
        counts_UC[:, :, None] * counts_UC[:, None, :] - counts_UC[:, :, None] * np.eye(NUM_VALUES)
    ) / np.maximum(num_U - 1, 1)[:, None, None]
    pairs_U = num_U * (num_U - 1) / 2

    def estimate(features: Sequence[Floats], statistic: Callable[[Floats], Floats]) -> Estimate | None:
        if not len(num_U):
            return None
        features_UF = np.concatenate([part.reshape(len(num_U), -1) for part in features], axis=1)
        sums_NF = _by_item(features_UF, item_U, ratings.num_items)
        return bootstrap(sums_NF, statistic, seed=seed, num_resamples=num_resamples)

    compared = np.unique(item_U)
    split = np.unique(item_U[agreeing_U < 1])
    return Agreement(
        num_units=len(num_U),
        pairwise=estimate([agreeing_U * pairs_U, pairs_U], _ratio),
        fleiss=estimate([agreeing_U, np.ones_like(num_U), counts_UC], _fleiss),
        krippendorff_nominal=estimate([coincidences_UCC], _alpha(ordinal=False)),
        krippendorff_ordinal=estimate([coincidences_UCC], _alpha(ordinal=True)),
        unanimous_items=len(compared) - len(split),
        compared_items=len(compared),
    )


def cohen(
    ratings: Ratings, first: str, second: str, *, seed: int = 0, num_resamples: int = 1000
) -> Estimate | None:
    """Cohen's kappa of two labelers over the pairs that both judged (Cohen 1960)."""
    two = ratings.columns(first, second).values_UL
    both = (two >= 0).all(axis=1)
    confusion_UCC = np.zeros((int(both.sum()), NUM_VALUES * NUM_VALUES))
    confusion_UCC[np.arange(len(confusion_UCC)), two[both, 0] * NUM_VALUES + two[both, 1]] = 1
    sums_NF = _by_item(confusion_UCC, ratings.item_U[both], ratings.num_items)
    return bootstrap(sums_NF, _cohen, seed=seed, num_resamples=num_resamples)


def cohens(ratings: Ratings, *, num_resamples: int = 1000) -> dict[tuple[str, str], Estimate | None]:
    """Cohen's kappa of every two labelers."""
    return {
        (first, second): cohen(ratings, first, second, num_resamples=num_resamples)
        for first, second in combinations(ratings.labelers, 2)
    }


def agreement_with_others(ratings: Ratings, labeler: str, *, num_resamples: int = 1000) -> Estimate | None:
    """Share of the other labelers' judgements, pair by pair, with which this labeler's agree."""
    column = ratings.labelers.index(labeler)
    own_U = ratings.values_UL[:, column]
    others = np.delete(ratings.values_UL, column, axis=1)
    judged = (own_U[:, None] >= 0) & (others >= 0)
    same = judged & (others == own_U[:, None])
    features_UF = np.stack([same.sum(axis=1), judged.sum(axis=1)], axis=1).astype(np.float64)
    sums_NF = _by_item(features_UF, ratings.item_U, ratings.num_items)
    return bootstrap(sums_NF, _ratio, num_resamples=num_resamples)


def item_agreement(ratings: Ratings) -> Floats:
    """Of each item the share of (pair, two labelers) with the same value; NaN for fewer than two labels."""
    counts_UC = ratings.counts_UC()
    num_U = counts_UC.sum(axis=1)
    features_UF = np.stack([(counts_UC * (counts_UC - 1)).sum(axis=1), num_U * (num_U - 1)], axis=1)
    return _ratio(_by_item(features_UF, ratings.item_U, ratings.num_items))


def bootstrap(
    sums_NF: Floats, statistic: Callable[[Floats], Floats], *, seed: int = 0, num_resamples: int = 1000
) -> Estimate | None:
    """The statistic of the items' summed features, and a percentile interval over resampled items.

    `statistic` takes (..., F) and gives (...), NaN where it is not determined; if it is not for these items,
    the result is None. Resamples in which it is not are left out. One item says nothing of how others would
    differ: its interval has no ends.
    """
    sums_NF = sums_NF[sums_NF.any(axis=1)]  # the other items say nothing of it
    value = float(statistic(sums_NF.sum(axis=0)))
    if not np.isfinite(value):
        return None
    rng, num_items = np.random.default_rng(seed), len(sums_NF)
    if num_items < 2:
        return Estimate(value, -math.inf, math.inf)
    drawn: list[Floats] = []
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        weights_BN = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=size)
        drawn.append(statistic(weights_BN @ sums_NF))
    low, high = np.nanquantile(np.concatenate(drawn), [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _by_item(features_UF: Floats, item_U: Ints, num_items: int) -> Floats:
    sums_NF = np.zeros((num_items, features_UF.shape[1]))
    np.add.at(sums_NF, item_U, features_UF)
    return sums_NF


def _ratio(sums_F: Floats) -> Floats:
    return _divided(sums_F[..., 0], sums_F[..., 1])


def _cohen(sums_F: Floats) -> Floats:
    confusion = sums_F.reshape(*sums_F.shape[:-1], NUM_VALUES, NUM_VALUES)
    total = confusion.sum(axis=(-2, -1))
    observed = _divided(np.trace(confusion, axis1=-2, axis2=-1), total)
    expected = _divided((confusion.sum(axis=-1) * confusion.sum(axis=-2)).sum(axis=-1), total**2)
    return _divided(observed - expected, 1 - expected)


def _fleiss(sums_F: Floats) -> Floats:
    """Fleiss's kappa (1971); where labels per unit differ, units weigh alike and values as often as given."""
    observed = _divided(sums_F[..., 0], sums_F[..., 1])
    shares = _divided(sums_F[..., 2:], sums_F[..., 2:].sum(axis=-1, keepdims=True))
    expected = (shares**2).sum(axis=-1)
    return _divided(observed - expected, 1 - expected)


def _alpha(*, ordinal: bool) -> Callable[[Floats], Floats]:
    """Krippendorff's alpha from coincidences (Krippendorff 2011, sections C and D); first < tie < second."""

    def alpha(sums_F: Floats) -> Floats:
        coincidences = sums_F.reshape(*sums_F.shape[:-1], NUM_VALUES, NUM_VALUES)
        totals = coincidences.sum(axis=-1)
        num = totals.sum(axis=-1)
        distance = _ordinal_distance(totals) if ordinal else 1 - np.eye(NUM_VALUES)
        observed = (coincidences * distance).sum(axis=(-2, -1))
        expected = (totals[..., :, None] * totals[..., None, :] * distance).sum(axis=(-2, -1))
        return 1 - _divided(observed * (num - 1), expected)

    return alpha


def _ordinal_distance(totals: Floats) -> Floats:
    """Squared number of values between two values, the ends counted half."""
    ends = np.cumsum(totals, axis=-1)
    middles = ends - totals / 2
    result: Floats = (middles[..., :, None] - middles[..., None, :]) ** 2
    return result


def _divided(above: Floats, below: Floats) -> Floats:
    """The quotient; NaN where `below` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = np.where(np.abs(below) > 1e-12, np.divide(above, below), np.nan)
    return result

"""How good a reward and a policy are, from numbers and texts alone.

Everything here takes arrays and gives numbers; nothing loads a model. A statistic that the data do not
determine (a correlation with a constant, an accuracy of no pairs) is None, never NaN.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Shapes: P pairs of completions, G prompts, N completions.

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A share and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return f"{self.value:.3f} [not determined]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pair_accuracy(
    margins_P: ArrayLike, prompts_P: ArrayLike, *, seed: int = 0, num_resamples: int = 2000
) -> Estimate | None:
    """Share of pairs whose margin (better less worse) is positive; a margin of 0 counts half.

    The interval is a percentile bootstrap over prompts, because pairs of one prompt are not independent:
    whole prompts are drawn with replacement and the share is taken again. `prompts_P` says which prompt a
    pair belongs to, by any integers.
    """
    margins = np.asarray(margins_P, dtype=np.float64)
    if not margins.size:
        return None
    right_P = (margins > 0) + 0.5 * (margins == 0)
    _, prompt_P = np.unique(np.asarray(prompts_P), return_inverse=True)
    right_G = np.bincount(prompt_P, weights=right_P)
    pairs_G = np.bincount(prompt_P).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(
        len(pairs_G), np.full(len(pairs_G), 1 / len(pairs_G)), size=num_resamples
    )
    low, high = np.quantile((drawn @ right_G) / (drawn @ pairs_G), [0.025, 0.975])
    return Estimate(float(right_P.mean()), float(low), float(high))


def accuracy_by_margin(margins_P: ArrayLike, *, num_parts: int = 4) -> list[float] | None:
    """Accuracy in equal parts of the pairs, from the smallest to the largest absolute margin.

    None when there are fewer pairs than parts.
    """
    margins = np.asarray(margins_P, dtype=np.float64)
    if margins.size < num_parts:
        return None
    ordered = margins[np.argsort(np.abs(margins), kind="stable")]
    return [float(((part > 0) + 0.5 * (part == 0)).mean()) for part in np.array_split(ordered, num_parts)]


def calibration_error(
    margins_P: ArrayLike, targets_P: ArrayLike, *, seed: int = 0, num_bins: int = 15
) -> float | None:
    """Expected calibration error of sigmoid(margin) as the probability that a pair's first is better.

    `targets_P` are the labels: 1, 0, or a probability between. The pairs fall into bins of equal width by
    what was predicted, and the error is the mean over pairs of |mean prediction - mean label| of their bin
    (1706.04599). Each pair is first turned around or not by a coin from `seed`: were the better one always
    first, every label would be 1 and the most confident model would look best.
    """
    margins, targets = np.asarray(margins_P, dtype=np.float64), np.asarray(targets_P, dtype=np.float64)
    if not margins.size:
        return None
    turned = np.random.default_rng(seed).random(margins.size) < 0.5
    predicted = _sigmoid(np.where(turned, -margins, margins))
    outcome = np.where(turned, 1 - targets, targets)
    bins = np.minimum((predicted * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bins, weights=predicted - outcome, minlength=num_bins)
    return float(np.abs(gaps).sum() / margins.size)


def pearson(x_N: ArrayLike, y_N: ArrayLike) -> float | None:
    """Linear correlation; None for fewer than two points or a constant."""
    x, y = np.asarray(x_N, dtype=np.float64), np.asarray(y_N, dtype=np.float64)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def spearman(x_N: ArrayLike, y_N: ArrayLike) -> float | None:
    """Rank correlation, equal values sharing their mean rank; None as for `pearson`."""
    return pearson(_mean_ranks(np.asarray(x_N)), _mean_ranks(np.asarray(y_N)))


def best_of_n_kl(n: int) -> float:
    """An upper bound in nats of KL(best-of-n ‖ the policy that draws the n): log n - (n - 1)/n.

    That the formula is a bound and not the value itself is shown in 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of all texts together, 0 to 1; words are split at white space.

    Falls with the number and length of the texts, so compare only like with like (1510.03055).
    """
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        grams.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(grams) / max(1, grams.total())


def _sigmoid(values: Floats) -> Floats:
    small = np.exp(-np.abs(values))
    result: Floats = np.where(values >= 0, 1 / (1 + small), small / (1 + small))
    return result


def _mean_ranks(values: NDArray[np.generic]) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    result: Floats = ((ends - counts + ends - 1) / 2)[place]
    return result

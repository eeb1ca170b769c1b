"""From a model's answers to a preference: both orders, several principles, and how sure it is. Numbers alone.

A model that likes whatever it is shown first (or second) has a bias in its log-odds. Asked about a pair in
both orders, "the one shown first is better" gets log-odds of preference + bias once and of −preference + bias
the other time: half their difference is the preference, half their sum the bias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rlhf.data.records import Comparison

MAX_LOG_ODDS = 12.0
"""Beyond this nothing is told apart: a probability within 6e-6 of certain."""


@dataclass(frozen=True)
class Opinion:
    """What one principle says of one pair, from one question in each order."""

    forward: float | None
    """Log-odds that the one shown first is better, the pair's first shown first; None: no answer."""
    backward: float | None
    """The same with the pair's second shown first."""

    @property
    def log_odds(self) -> float | None:
        """Of the pair's first against its second; None without both orders: it would hold the bias."""
        if self.forward is None or self.backward is None:
            return None
        return _bounded((_bounded(self.forward) - _bounded(self.backward)) / 2)

    @property
    def bias(self) -> float | None:
        """Log-odds by which the one shown first is liked more."""
        if self.forward is None or self.backward is None:
            return None
        return (_bounded(self.forward) + _bounded(self.backward)) / 2

    @property
    def consistent(self) -> bool | None:
        """Whether both orders name the same one; None where an order names none: no answer, or a tie."""
        if not self.forward or not self.backward:
            return None
        return (self.forward > 0) == (self.backward < 0)


def probability(opinions: Sequence[Opinion], *, clamp: float = 0.0) -> float | None:
    """That the pair's first is better: the mean over principles of their log-odds.

    With `clamp`, each principle's probability is first moved into [clamp, 1 − clamp]: after reasoning, models
    are far too sure (2212.08073, section 4.1). None if no principle has an opinion.
    """
    known = [each.log_odds for each in opinions if each.log_odds is not None]
    if not known:
        return None
    if clamp > 0:
        bound = math.log((1 - clamp) / clamp)
        known = [min(bound, max(-bound, value)) for value in known]
    return sigmoid(sum(known) / len(known))


def entropy_bits(value: float) -> float:
    """Of a label that is 1 with this probability."""
    return -sum(p * math.log2(p) for p in (value, 1 - value) if p > 0)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(value))


def log_odds(value: float) -> float:
    """The inverse of `sigmoid`, within ±`MAX_LOG_ODDS`."""
    if value in (0, 1):
        return MAX_LOG_ODDS if value else -MAX_LOG_ODDS
    return _bounded(math.log(value / (1 - value)))


def triads_in_circle(comparisons: Sequence[Comparison]) -> int:
    """Triples of completions that beat each other in a circle: a beats b, b beats c, c beats a."""
    beats: Mapping[tuple[int, int], bool] = {
        **{(i, j): p > 0.5 for i, j, p in comparisons if p != 0.5},
        **{(j, i): p < 0.5 for i, j, p in comparisons if p != 0.5},
    }
    names = sorted({name for pair in beats for name in pair})
    circles = 0
    for a, b, c in combinations(names, 3):
        around = (beats.get((a, b)), beats.get((b, c)), beats.get((c, a)))
        circles += around in ((True,) * 3, (False,) * 3)
    return circles


def _bounded(value: float) -> float:
    return min(MAX_LOG_ODDS, max(-MAX_LOG_ODDS, value))

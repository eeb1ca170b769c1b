"""Medians and pair-by-pair ratios of interleaved rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

Curve = Sequence[tuple[float, float]]
"""Points (x, y) in order of x."""


@dataclass(frozen=True)
class MedianRange:
    """A median with the lowest and the highest of what it was taken from."""

    median: float
    low: float
    high: float
    num: int

    @staticmethod
    def of(values: Sequence[float]) -> "MedianRange":
        return MedianRange(median(values), min(values), max(values), len(values))


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> MedianRange:
    """The ratios of each round's two numbers: what the machine did to a whole round cancels."""
    return MedianRange.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def first_crossing(curve: Curve, level: float) -> float | None:
    """The least x at which the curve, straight between its points, reaches `level`; None if never."""
    before: tuple[float, float] | None = None
    for x, y in curve:
        if y >= level:
            if before is None or y == before[1]:
                return x
            share = (level - before[1]) / (y - before[1])
            return before[0] + share * (x - before[0])
        before = (x, y)
    return None

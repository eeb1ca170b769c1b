"""Gold against KL over whole learning curves: which racer buys more gold for the same distance.

One crossing of two noisy curves says little, so the height of each curve is averaged over all KL that both
have reached, and the difference gets an interval from drawing the held-out prompts again and again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.trl.jobs import Curve

# Shapes: P points of a curve, N held-out prompts.

_NUM_DRAWS = 2000
_LEVEL = 0.95


def compare_frontiers(ours: Curve, peer: Curve, *, seed: int = 0) -> dict[str, Any]:
    """Mean gold of both over the KL from 0 to the largest that both reached, and ours less the peer's.

    The interval (95 %, percentile bootstrap over held-out prompts) is of what the judge found: the same
    prompts are drawn for every point of both curves. How much another training seed moves the curves is seen
    by comparing seeds. Without per-prompt values there is no interval (None).
    """
    curves = [_Points.of(curve) for curve in (ours, peer)]
    kl = min(float(each.kls_PN.mean(1).max()) for each in curves)
    golds = [each.mean_height(kl) for each in curves]
    return {
        "kl_nats": kl,
        "ours_gold": golds[0],
        "peer_gold": golds[1],
        "difference": golds[0] - golds[1],
        "interval": _interval(curves, seed),
    }


class _Points:
    """A curve's KL and gold, per point and held-out prompt."""

    def __init__(self, kls_PN: NDArray[np.float64], golds_PN: NDArray[np.float64]) -> None:
        self.kls_PN = kls_PN
        self.golds_PN = golds_PN

    @staticmethod
    def of(curve: Curve) -> "_Points":
        kls = [point.kls_nats or [point.kl_nats] for point in curve.points]
        return _Points(np.array(kls), np.array([point.golds or [point.gold] for point in curve.points]))

    def draw(self, prompts_N: NDArray[Any]) -> "_Points":
        return _Points(self.kls_PN[:, prompts_N], self.golds_PN[:, prompts_N])

    def mean_height(self, kl: float) -> float:
        """Mean gold over KL from the curve's start to `kl`: its points in order of KL, joined by lines."""
        kls_P = self.kls_PN.mean(1)
        golds_P = self.golds_PN.mean(1)
        order = np.argsort(kls_P, kind="stable")
        kls_P = kls_P[order]
        golds_P = golds_P[order]
        inside = kls_P < kl
        x = np.append(kls_P[inside], kl)
        y = np.append(golds_P[inside], np.interp(kl, kls_P, golds_P))
        return float(np.trapezoid(y, x) / (x[-1] - x[0])) if x[-1] > x[0] else float(y[-1])


def _interval(curves: Sequence[_Points], seed: int) -> tuple[float, float] | None:
    num_prompts = int(curves[0].kls_PN.shape[1])
    if num_prompts < 2 or any(each.kls_PN.shape[1] != num_prompts for each in curves):
        return None
    random = np.random.default_rng(seed)
    differences: list[float] = []
    for _ in range(_NUM_DRAWS):
        prompts_N = random.integers(num_prompts, size=num_prompts, dtype=np.int64)
        drawn = [each.draw(prompts_N) for each in curves]
        kl = min(float(each.kls_PN.mean(1).max()) for each in drawn)
        differences.append(drawn[0].mean_height(kl) - drawn[1].mean_height(kl))
    low, high = np.quantile(differences, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)

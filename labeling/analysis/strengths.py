"""How strong the models are whose completions were ranked: Bradley–Terry strengths.

The probability that model a's completion is preferred to model b's is 1 / (1 + exp(b - a)) (Bradley and Terry
1952). A tie is half a win for each. Strengths add up to 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import choix
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from labeling.store.judgements import implied_pairs
from labeling.store.labels import Label
from labeling.store.project import StoredItem
from rlhf.statistics.evaluation import Estimate

# Shapes: M models, N items, B resamples.

_MIN_DETERMINED = 0.975
"""Share of the resamples that must determine the strengths for an interval to be given."""


@dataclass(frozen=True)
class Strength:
    """One model's strength, in units of log-odds."""

    model: str
    strength: Estimate | None
    """None where wins do not determine it: some models never lost to, or never won from, the others."""
    num_pairs: int
    """Judgements in which its completion was compared with another model's."""


def bradley_terry(
    items: Sequence[StoredItem], labels: Sequence[Label], *, seed: int = 0, num_resamples: int = 200
) -> list[Strength]:
    """Strengths of all models that are named, strongest first, with bootstrap intervals over items."""
    writers = {item.item_id: item.models for item in items if item.models is not None}
    models = sorted({model for named in writers.values() for model in named})
    if len(models) < 2:
        return []
    wins_NMM = _wins(writers, models, labels)
    total_MM = wins_NMM.sum(axis=0)
    fitted = _fit(total_MM)
    num_pairs = (total_MM + total_MM.T).sum(axis=1)
    intervals = None if fitted is None else _intervals(wins_NMM, seed=seed, num_resamples=num_resamples)
    found = []
    for number, model in enumerate(models):
        estimate = None
        if fitted is not None:
            low, high = (-np.inf, np.inf) if intervals is None else intervals[:, number]
            estimate = Estimate(float(fitted[number]), float(low), float(high))
        found.append(Strength(model, estimate, round(float(num_pairs[number]))))
    return sorted(found, key=lambda each: -each.strength.value if each.strength else 0.0)


def _wins(
    writers: dict[int, tuple[str, ...]], models: Sequence[str], labels: Sequence[Label]
) -> NDArray[np.float64]:
    """[item, a, b]: how often a completion of a was preferred to one of b."""
    column = {model: number for number, model in enumerate(models)}
    row = {item_id: number for number, item_id in enumerate(writers)}
    wins_NMM = np.zeros((len(row), len(models), len(models)))
    for label in labels:
        named = writers.get(label.item_id)
        if named is None:
            continue
        for first, second, better in implied_pairs(label.ranks):
            a, b = column[named[first]], column[named[second]]
            if a != b:
                wins_NMM[row[label.item_id], a, b] += (1 + better) / 2
                wins_NMM[row[label.item_id], b, a] += (1 - better) / 2
    return wins_NMM


def _fit(wins_MM: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Maximum likelihood; None where there is none, because wins lead from no model back to itself."""
    num_groups, _ = connected_components(wins_MM > 0, directed=True, connection="strong")
    if num_groups > 1:
        return None
    strengths: NDArray[np.float64] = choix.ilsr_pairwise_dense(wins_MM)
    centred: NDArray[np.float64] = strengths - strengths.mean()
    return centred


def _intervals(wins_NMM: NDArray[np.float64], *, seed: int, num_resamples: int) -> NDArray[np.float64] | None:
    rng, num = np.random.default_rng(seed), len(wins_NMM)
    flat = wins_NMM.reshape(num, -1)
    fits = []
    for _ in range(num_resamples):
        weights_N = rng.multinomial(num, np.full(num, 1 / num))
        fits.append(_fit((weights_N @ flat).reshape(wins_NMM.shape[1:])))
    determined = [fit for fit in fits if fit is not None]
    if len(determined) < _MIN_DETERMINED * num_resamples:
        return None
    result: NDArray[np.float64] = np.quantile(np.stack(determined), [0.025, 0.975], axis=0)
    return result

"""What a reward model is worth on held-out prompts, by their labels and by a gold scorer if there is one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from reward.config import RewardSettings
from reward.data import Group
from reward.loss import collate, ranking_loss
from reward.model import RewardCard
from rlhf.data.scorers import load_scorer
from rlhf.data.scores import NO_SCORE
from rlhf.statistics.evaluation import (
    Estimate,
    accuracy_by_margin,
    calibration_error,
    pair_accuracy,
    pearson,
    spearman,
)

Values = Sequence[Sequence[float]]
"""One number for every completion of every group."""


@dataclass(frozen=True)
class OrderedPair:
    """Two completions of a group, one of which was judged better: by a label, or by the gold scorer."""

    group: int
    better: int
    worse: int


@dataclass(frozen=True)
class HeldOut:
    """The held-out groups and what the gold scorer says of their completions."""

    groups: list[Group]
    gold: list[list[float]] | None
    settings: RewardSettings
    seed: int

    @staticmethod
    def prepare(groups: list[Group], settings: RewardSettings, *, seed: int) -> "HeldOut":
        """Ask the gold scorer, if there is one, about every completion once."""
        gold = None
        if settings.gold is not None:
            prompts = [group.prompt for group in groups for _ in group.completions]
            completions = [completion for group in groups for completion in group.completions]
            flat = iter(load_scorer(settings.gold, all_finite=False)(prompts, completions))
            gold = [[_score(next(flat)) for _ in group.completions] for group in groups]
        return HeldOut(groups, gold, settings, seed)

    def metrics(self, scores: Values) -> dict[str, float]:
        """Every held-out metric by name; see `evaluate`."""
        margin = self.settings.tie_margin
        return evaluate(self.groups, scores, tie_margin=margin, gold=self.gold, seed=self.seed)

    def table(
        self, scores: Values, card: RewardCard, *, num_groups: int
    ) -> tuple[list[str], list[list[str | float]]]:
        """Columns and rows of the table that shows completions with their labels and scores."""
        columns = ["prompt", "completion", "label", "score", "raw_score", "tokens"]
        if self.gold is not None:
            columns.append("gold")
        rows: list[list[str | float]] = []
        for number, group in enumerate(self.groups[:num_groups]):
            for k, completion in enumerate(group.completions):
                raw = scores[number][k]
                normalized = (raw - card.mean) / card.std
                tokens = len(group.response_ids[k])
                rows.append([group.prompt, completion, group.labels[k], normalized, raw, tokens])
                if self.gold is not None:
                    rows[-1].append(self.gold[number][k])
        return columns, rows


def evaluate(
    groups: Sequence[Group], scores: Values, *, tie_margin: float | None, gold: Values | None, seed: int
) -> dict[str, float]:
    """Every held-out metric by name: `reward/heldout_*` in docs/metrics.md.

    What the data do not determine (an accuracy of no pairs, say) is left out. Probabilities of exactly 1/2
    have no order and enter only the loss and the calibration; ties only the loss.
    """
    labelled = list(_labelled(groups))
    lengths = [[float(len(ids)) for ids in group.response_ids] for group in groups]
    metrics: dict[str, float | Estimate | None] = {
        "num_groups": float(len(groups)),
        "num_pairs": float(len(labelled)),
        "loss_nats": _loss(groups, scores, tie_margin),
        "accuracy": _accuracy(groups, labelled, scores, seed),
        "longer_accuracy": _accuracy(groups, labelled, lengths, seed),
        "calibration_error": _calibration(groups, scores, seed),
        "length_pearson": pearson(_flat(scores), _flat(lengths)),
        "length_spearman": spearman(_flat(scores), _flat(lengths)),
    }
    parts = accuracy_by_margin(_margins(labelled, scores))
    metrics |= {f"accuracy_margin_q{i}": value for i, value in enumerate(parts or [], start=1)}
    if gold is not None:
        ordered = list(_ordered_by(gold))
        metrics["num_gold_pairs"] = float(len(ordered))
        metrics["gold_accuracy"] = _accuracy(groups, ordered, scores, seed)
        metrics["gold_longer_accuracy"] = _accuracy(groups, ordered, lengths, seed)
        scored = list(zip(_flat(scores), _flat(gold), strict=True))
        both = [pair for pair in scored if math.isfinite(pair[1])]
        metrics["gold_pearson"] = pearson([ours for ours, _ in both], [theirs for _, theirs in both])
        metrics["num_gold_unscored"] = float(len(scored) - len(both))
    return _numbers(metrics)


def _score(gold: float) -> float:
    """A gold score, or NaN for none: infinities have no place among means and correlations."""
    return gold if math.isfinite(gold) else NO_SCORE


def report(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """The held-out metrics as the rows that are printed at the end of the stage."""
    rows: list[tuple[str, str]] = []
    for name, counted, label in (
        ("accuracy", "num_pairs", "pair accuracy"),
        ("longer_accuracy", "num_pairs", "  of “longer wins”"),
        ("gold_accuracy", "num_gold_pairs", "pair accuracy, gold order"),
        ("gold_longer_accuracy", "num_gold_pairs", "  of “longer wins”"),
    ):
        if name in metrics:
            interval = f"[{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]"
            rows.append((label, f"{metrics[name]:.3f}  95 % {interval}, {metrics[counted]:,.0f} pairs"))
    if "accuracy_margin_q1" in metrics:
        quartiles = "  ".join(f"{metrics[f'accuracy_margin_q{i}']:.3f}" for i in range(1, 5))
        rows.append(("accuracy by margin, small to large", quartiles))
    if "calibration_error" in metrics:
        rows.append(("calibration error (ECE)", f"{metrics['calibration_error']:.3f}"))
    if "length_pearson" in metrics and "length_spearman" in metrics:
        values = f"Pearson {metrics['length_pearson']:+.3f}, Spearman {metrics['length_spearman']:+.3f}"
        rows.append(("correlation with length", values))
    return rows or [("held-out", "no comparison")]


def _labelled(groups: Sequence[Group]) -> Iterator[OrderedPair]:
    for number, group in enumerate(groups):
        for first, second, target, is_tie in group.pairs:
            if is_tie or target == 0.5:
                continue
            if target > 0.5:
                yield OrderedPair(number, better=first, worse=second)
            else:
                yield OrderedPair(number, better=second, worse=first)


def _ordered_by(values: Values) -> Iterator[OrderedPair]:
    """Every pair of a group whose two values differ."""
    for number, group in enumerate(values):
        for first, second in combinations(range(len(group)), 2):
            if group[first] > group[second]:
                yield OrderedPair(number, better=first, worse=second)
            elif group[first] < group[second]:
                yield OrderedPair(number, better=second, worse=first)


def _margins(ordered: Sequence[OrderedPair], values: Values) -> list[float]:
    """How much more the better one of every pair has."""
    return [values[pair.group][pair.better] - values[pair.group][pair.worse] for pair in ordered]


def _accuracy(
    groups: Sequence[Group], ordered: Sequence[OrderedPair], values: Values, seed: int
) -> Estimate | None:
    """Accuracy with its interval.

    Pairs of one prompt are correlated, so the bootstrap draws prompts and not pairs.
    """
    keys = dict.fromkeys(group.key for group in groups)
    numbers = {key: number for number, key in enumerate(keys)}
    prompts = [numbers[groups[pair.group].key] for pair in ordered]
    return pair_accuracy(_margins(ordered, values), prompts, seed=seed)


def _calibration(groups: Sequence[Group], scores: Values, seed: int) -> float | None:
    """How far the stated probabilities are from the labels; a tie says nothing of one."""
    margins: list[float] = []
    targets: list[float] = []
    for group, values in zip(groups, scores, strict=True):
        for pair in group.pairs:
            if not pair.is_tie:
                margins.append(values[pair.first] - values[pair.second])
                targets.append(pair.target)
    return calibration_error(margins, targets, seed=seed)


def _loss(groups: Sequence[Group], scores: Values, tie_margin: float | None) -> float | None:
    if not groups:
        return None
    pairs = collate([group.pairs for group in groups], [len(group) for group in groups])
    return float(ranking_loss(torch.tensor(_flat(scores)), pairs, tie_margin=tie_margin or 0.0))


def _flat(values: Values) -> list[float]:
    return [value for group in values for value in group]


def _numbers(metrics: dict[str, float | Estimate | None]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Estimate):
            numbers |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif value is not None:
            numbers[name] = value
    assert np.isfinite(list(numbers.values())).all()
    return numbers

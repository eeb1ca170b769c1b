"""Scripted labelers: rankings by a scorer whose comparisons err at a known rate."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from labeling.config import RankingsSettings
from labeling.store.items import Item, read_items
from rlhf.data.records import Ranking, prompt_key, write_jsonl
from rlhf.data.scorers import load_scorer
from rlhf.data.scores import num_not_finite
from rlhf.errors import UserError
from rlhf.model.chat import prompt_text
from rlhf.runs.progress import print_result
from rlhf.runs.stage import StageRun
from rlhf.settings.recipe import Recipe
from rlhf.statistics.evaluation import Estimate, pair_accuracy

RANKINGS = "rankings.jsonl"


@dataclass(frozen=True)
class ScriptedLabeler:
    """Ranks as a person does who puts completions in order one after the other.

    Each is compared with those already in place, from the worst upwards, until it is not better. Each
    comparison comes out wrong with probability `error_rate`: the opposite of what the scores say, or a
    coin's choice where they say nothing. So the ranks are always an order, whatever the errors; of the pairs
    they imply, somewhat more than `error_rate` are wrong, because one error can move a completion by several
    places.
    """

    error_rate: float
    tie_width: float

    def ranks(self, scores: Sequence[float], rng: random.Random) -> tuple[int, ...]:
        """Rank of each completion, given how good it is: 1 is best, and 1, 1, 3 is a tie for first place."""
        groups: list[list[int]] = []  # from the worst upwards; a group is a tie
        for item, score in enumerate(scores):
            place = 0
            while place < len(groups):
                order = self._compare(score, scores[groups[place][0]], rng)
                if order <= 0:
                    break
                place += 1
            if place < len(groups) and order == 0:
                groups[place].append(item)
            else:
                groups.insert(place, [item])
        ranks = [0] * len(scores)
        num_better = 0
        for group in reversed(groups):
            for item in group:
                ranks[item] = num_better + 1
            num_better += len(group)
        return tuple(ranks)

    def _compare(self, score: float, other: float, rng: random.Random) -> int:
        truth = 0 if abs(score - other) <= self.tie_width else 1 if score > other else -1
        if rng.random() >= self.error_rate:
            return truth
        return -truth or rng.choice((-1, 1))


@dataclass(frozen=True)
class Labels:
    """Rankings, and how far they say what the scorer says."""

    rankings: list[Ranking]
    scores: list[tuple[float, ...]]
    """The scorer's raw scores, item by item."""
    accuracy: Estimate | None
    """Share of the pairs that differ in score by more than the tie width which the labels order as the
    scorer does; a tie counts half."""
    tied_ratio: float
    """Share of all pairs that the labels tie."""


def label(items: Sequence[Item], settings: RankingsSettings, *, seed: int) -> Labels:
    """Rank every item whose completions all have a score.

    An item's ranks depend on its content and `seed` alone, not on the other items.

    Raises:
        UserError: the scorer cannot be loaded, gives no numbers, or cannot score any item as a whole.
    """
    scorer = load_scorer(settings.scorer, all_finite=False)
    labeler = ScriptedLabeler(settings.error_rate, settings.tie_width)
    sign = 1.0 if settings.prefer == "higher" else -1.0
    prompts = [prompt_text(item.prompt) for item in items for _ in item.completions]
    flat = iter(scorer(prompts, [text for item in items for text in item.completions]))
    given = [(item, tuple(next(flat) for _ in item.completions)) for item in items]
    ranked = [(item, raw) for item, raw in given if not num_not_finite(raw)]
    if not ranked:
        raise UserError(
            f"it has no score for some completion of each of {len(items):,} items",
            where=f"scorer {settings.scorer}",
            fix="Let it return a finite number for every completion that it can judge.",
        )
    rankings: list[Ranking] = []
    for item, raw in ranked:
        rng = random.Random("|".join((str(seed), prompt_key(item.prompt), *item.completions)))
        ranks = labeler.ranks([sign * score for score in raw], rng)
        rankings.append(
            Ranking(
                prompt=item.prompt,
                completions=item.completions,
                ranks=ranks,
                annotator=f"scripted:{settings.scorer}",
            )
        )
    return _measured(rankings, [raw for _, raw in ranked], settings)


def _measured(rankings: list[Ranking], scores: list[tuple[float, ...]], settings: RankingsSettings) -> Labels:
    sign = 1 if settings.prefer == "higher" else -1
    margins: list[int] = []
    owners: list[int] = []
    num_pairs = num_tied = 0
    for owner, (ranking, raw) in enumerate(zip(rankings, scores, strict=True)):
        for truth, said in _pairs(ranking, raw):
            num_pairs += 1
            num_tied += said == 0
            if abs(truth) > settings.tie_width:
                margins.append(said if sign * truth > 0 else -said)
                owners.append(owner)
    return Labels(rankings, scores, pair_accuracy(margins, owners), num_tied / num_pairs)


def _pairs(ranking: Ranking, scores: Sequence[float]) -> Iterator[tuple[float, int]]:
    """(score difference, what the ranks say of it: 1 first better, 0 tie, −1 second better) of each pair."""
    ranks = [rank for rank in ranking.ranks or () if isinstance(rank, int)]
    for first, second in combinations(range(len(scores)), 2):
        better = ranks[second] - ranks[first]
        yield scores[first] - scores[second], (better > 0) - (better < 0)


def make_rankings(recipe: Recipe, settings: RankingsSettings, stage: StageRun, *, samples: Path) -> None:
    """Rank the completions in `samples` and publish `rankings.jsonl`."""
    items = read_items(samples)
    labels = label(items, settings, seed=recipe.run.seed)
    flat = [score for scores in labels.scores for score in scores]
    best = max if settings.prefer == "higher" else min
    num_unscored = len(items) - len(labels.rankings)
    metrics: dict[str, float] = {
        "items": len(labels.rankings),
        "items_without_scores": num_unscored,
        "score_mean": sum(flat) / len(flat),
        "score_best_mean": sum(best(scores) for scores in labels.scores) / len(labels.scores),
        "tied_pairs_ratio": labels.tied_ratio,
    }
    if labels.accuracy is not None:
        metrics["pair_accuracy"] = labels.accuracy.value
    stage.publish({RANKINGS: lambda path: write_jsonl(path, labels.rankings)}, metrics=metrics, counts={})
    rows = [
        ("items ranked", f"{len(labels.rankings):,}"),
        *([("items left out, a score is missing", f"{num_unscored:,}")] if num_unscored else []),
        (
            "score, mean and best of an item",
            f"{metrics['score_mean']:.3f}, {metrics['score_best_mean']:.3f}",
        ),
        ("pairs ordered as the scorer does", str(labels.accuracy) if labels.accuracy else "no pair differs"),
        ("pairs tied", f"{labels.tied_ratio:.1%}"),
        ("rankings", str(stage.folder / RANKINGS)),
    ]
    print_result("rankings", rows, stage.next_command("reward"))

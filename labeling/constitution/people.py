"""The constitution compared with people: how far they agree, and its ranks in their labeling project."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from labeling.analysis.agreement import Ratings, agreement, cohen
from labeling.constitution.opinions import log_odds
from labeling.constitution.preferences import Judged
from labeling.exchange.importing import ForeignLabel, Imported, enter
from labeling.store.items import Item
from labeling.store.judgements import Judgement, implied_pairs, ranks_of
from labeling.store.labels import Label
from labeling.store.project import Project
from labeling.store.rules import LabelingRules
from rlhf.data.records import Rank, Ranking
from rlhf.statistics.evaluation import Estimate, calibration_error, pair_accuracy

PEOPLE = "people"


@dataclass(frozen=True)
class PeopleComparison:
    """The constitution's preferences, compared with people's rankings of the same completions."""

    items: int
    """Items that both judged."""
    pairs: int
    """Pairs of completions that both judged."""
    agreement: Estimate | None
    """Share of those pairs of which both say the same, of the constitution its likelier side."""
    kappa: Estimate | None
    """Cohen's kappa of the same."""
    same_order: Estimate | None
    """Share of the pairs that people do not tie which the constitution puts in their order."""
    calibration_error: float | None
    """Of the probabilities, against the pairs that people do not tie."""
    reliability: list[tuple[float, float, int]]
    """Mean probability, share that people preferred, and pairs, of each tenth of probabilities."""


def compare_with_people(
    judged: Sequence[Judged], people: Sequence[Ranking], annotator: str
) -> PeopleComparison:
    """Compare what both judged; where several people ranked an item, each ranking counts by itself.

    Intervals are over items, however many rankings one has: those say much the same of it.
    """
    theirs: dict[str, list[tuple[Rank, ...]]] = {}
    for ranking in people:
        key = Item(prompt=ranking.prompt, completions=ranking.completions).key
        theirs.setdefault(key, []).append(_ranks(ranking))
    labels: list[Label] = []
    points: list[tuple[float, float]] = []
    owners: list[int] = []
    """The item of each point."""
    ranked: list[int] = []
    """The item of each ranking."""
    shared = [each for each in judged if each.comparisons and each.item.key in theirs]
    for number, each in enumerate(shared):
        rankings = theirs[each.item.key]
        own = ranks_of(each.comparisons, len(each.item.completions))
        for ranks in rankings:
            labels += [_label(len(ranked), annotator, own), _label(len(ranked), PEOPLE, ranks)]
            ranked.append(number)
            own_points = list(_points(each, ranks))
            points += own_points
            owners += [number] * len(own_points)
    if not labels:
        return PeopleComparison(0, 0, None, None, None, None, [])
    ratings = _by_items(Ratings.of(labels), ranked)
    together = agreement(ratings)
    margins, targets = [log_odds(p) for p, _ in points], [target for _, target in points]
    ordered = [margin if target == 1 else -margin for margin, target in zip(margins, targets, strict=True)]
    return PeopleComparison(
        items=len(shared),
        pairs=together.num_units,
        agreement=together.pairwise,
        kappa=cohen(ratings, annotator, PEOPLE),
        same_order=pair_accuracy(ordered, owners),
        calibration_error=calibration_error(margins, targets),
        reliability=reliability(points),
    )


def reliability(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, int]]:
    """Of (probability, outcome): the mean of both and the number in each tenth that has any.

    Each pair stands there in both directions, so the table is symmetric about one half.
    """
    both = [*points, *((1 - p, 1 - outcome) for p, outcome in points)]
    table = []
    for tenth in range(10):
        inside = [(p, outcome) for p, outcome in both if min(9, int(p * 10)) == tenth]
        if inside:
            n = len(inside)
            table.append((sum(p for p, _ in inside) / n, sum(o for _, o in inside) / n, n))
    return table


def enter_ranks(location: str, judged: Sequence[Judged], annotator: str) -> Imported:
    """Put the ranks into a labeling project, which is made if there is none, as one labeler's.

    Entering them again adds nothing.

    Raises:
        UserError: the project cannot be used.
    """
    labels = [
        ForeignLabel(
            item=each.item,
            labeler=annotator,
            ranks=ranks_of(each.comparisons, len(each.item.completions)),
            where="constitution",
            comparisons=each.comparisons,
        )
        for each in judged
        if each.comparisons
    ]
    with Project.open_or_create(location, LabelingRules) as project:
        return enter(project, labels)


def _by_items(ratings: Ratings, ranked: Sequence[int]) -> Ratings:
    """Ratings in which each ranking is an item of its own, put together by the items that were ranked."""
    items = np.array([ranked[ranking] for ranking in ratings.item_ids], dtype=np.int64)
    return replace(ratings, item_U=items[ratings.item_U], item_ids=tuple(range(1 + max(ranked))))


def _ranks(ranking: Ranking) -> tuple[Rank, ...]:
    if ranking.ranks is not None:
        return ranking.ranks
    return ranks_of(ranking.comparisons or (), len(ranking.completions))


def _points(judged: Judged, ranks: Sequence[Rank]) -> Iterator[tuple[float, float]]:
    """(probability, 1 or 0) of every pair that people order."""
    order = {(i, j): better for i, j, better in implied_pairs(ranks)}
    for first, second, probability in judged.comparisons:
        better = order.get((first, second), 0)
        if better:
            yield probability, float(better > 0)


def _label(item_id: int, labeler: str, ranks: Sequence[Rank]) -> Label:
    return Label(
        event_id=0,
        item_id=item_id,
        labeler_id=int(labeler == PEOPLE),
        labeler=labeler,
        judgement=Judgement(tuple(ranks)),
        at=0.0,
        seconds=None,
        late=False,
    )

"""How a project stands: what is done, who does it how fast, how far labelers agree, what is disputed."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import func, select

from labeling.analysis.agreement import (
    Agreement,
    Ratings,
    agreement,
    agreement_with_others,
    bootstrap,
    cohens,
)
from labeling.analysis.consensus import consensus, kendall_tau
from labeling.analysis.decisions import by_item, decisions, disputes
from labeling.analysis.given import Given, count_reasons, flags_by_item, read_given
from labeling.analysis.strengths import Strength, bradley_terry
from labeling.store.judgements import implied_pairs
from labeling.store.labels import Label, read_labels
from labeling.store.project import Project
from labeling.store.tables import queue, work
from rlhf.statistics.evaluation import Estimate

SUSPICIOUS_TAU, SUSPICIOUS_LABELS = 0.8, 10
"""Ten random orders of two answers agree so far with somebody's ranks in about one of fifty cases, of more
answers hardly ever."""


@dataclass(frozen=True)
class LabelerStatus:
    """One labeler's work and how it compares."""

    labeler: str
    submitted: int
    """Labels in force, gold and qualification items included."""
    in_progress: int
    skipped: int
    late: int
    seconds_per_label: float | None
    """Median working time, pauses not counted; None for imported labels."""
    gold_accuracy: Estimate | None
    """Share of the pairs of gold items that they judged as the answers do."""
    agreement_with_others: Estimate | None
    tau: Estimate | None
    """Mean over items of Kendall's tau-b with the consensus of the other labelers."""
    order_shown_tau: float | None
    """Mean over labels of Kendall's tau-b with the order in which answers were shown, which is random: near 0
    for whoever reads them."""

    @property
    def goes_by_position(self) -> bool:
        """Whether the ranks follow the order shown, or its reverse, more than answers can explain."""
        tau = self.order_shown_tau
        return tau is not None and abs(tau) >= SUSPICIOUS_TAU and self.submitted >= SUSPICIOUS_LABELS


@dataclass(frozen=True)
class Status:
    """A project at one moment."""

    items: int
    items_done: int
    """Items that have all the labels they should have."""
    items_begun: int
    """Items that have some of them."""
    labels: int
    in_progress: int
    flagged_items: int
    """Items of whatever kind that somebody flagged; an export holds them back."""
    flag_reasons: Mapping[str, int]
    """Reason → items."""
    decided_items: int
    disputed_items: int
    labelers: tuple[LabelerStatus, ...]
    agreement: Agreement
    cohen: Mapping[tuple[str, str], Estimate | None]
    strengths: tuple[Strength, ...]
    given: tuple[Given, ...]
    """What people said apart from ranks: quality scores, notes, flags, why they skipped an item."""

    def renamed(self, name: Callable[[str], str]) -> "Status":
        """The same with other names for labelers."""
        return replace(
            self,
            labelers=tuple(replace(each, labeler=name(each.labeler)) for each in self.labelers),
            cohen={(name(one), name(other)): kappa for (one, other), kappa in self.cohen.items()},
            given=tuple(replace(each, labeler=name(each.labeler)) for each in self.given),
        )


def status(project: Project, *, threshold: float, num_resamples: int = 1000) -> Status:
    """All of it; `threshold` is the agreement below which an item counts as disputed."""
    labels = read_labels(project)
    ratings = Ratings.of(labels)
    num_labels = {item_id: len(own) for item_id, own in by_item(labels).items()}
    done = sum(number >= project.rules.overlap for number in num_labels.values())
    with project.database.read() as connection:
        leased = select(func.count()).select_from(work).where(work.c.state == "leased")
        total = select(func.count()).select_from(queue).where(queue.c.kind == "item")
        num_leased = int(connection.execute(leased).scalar_one())
        num_items = int(connection.execute(total).scalar_one())
    given = read_given(project)
    flags = flags_by_item(given)
    return Status(
        items=num_items,
        items_done=done,
        items_begun=len(num_labels) - done,
        labels=len(labels),
        in_progress=num_leased,
        flagged_items=len(flags),
        flag_reasons=count_reasons(flags),
        decided_items=len(decisions(project)),
        disputed_items=len(disputes(project, threshold=threshold)),
        labelers=tuple(_labelers(project, labels, ratings, num_resamples)),
        agreement=agreement(ratings, num_resamples=num_resamples),
        cohen=cohens(ratings, num_resamples=num_resamples),
        strengths=tuple(bradley_terry(project.items("item"), labels)),
        given=tuple(each for each in given if each.says_more_than_ranks),
    )


def gold_accuracy(
    project: Project, labels: Sequence[Label], *, num_resamples: int = 1000
) -> dict[str, Estimate | None]:
    """Labeler → share of the gold items' pairs judged as the answers do; `labels` are of gold items."""
    answers = {item.item_id: implied_pairs(item.answer or ()) for item in project.items("gold")}
    counts: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for label in labels:
        said, truth = set(implied_pairs(label.ranks)), answers[label.item_id]
        counts[label.labeler].append((sum(pair in said for pair in truth), len(truth)))
    return {name: _share(rows, num_resamples) for name, rows in counts.items()}


def taus(labels: Sequence[Label], *, num_resamples: int = 1000) -> dict[str, Estimate | None]:
    """Labeler → mean over items of Kendall's tau-b with the consensus of the item's other labels.

    Items that one of the two ties wholly have no tau and are left out.
    """
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for own in by_item(labels).values():
        for number, label in enumerate(own):
            others = [other.ranks for other in own[:number] + own[number + 1 :]]
            tau = kendall_tau(label.ranks, consensus(others).ranks) if others else None
            if tau is not None:
                found[label.labeler].append((tau, 1.0))
    return {name: _share(rows, num_resamples) for name, rows in found.items()}


def _labelers(
    project: Project, labels: Sequence[Label], ratings: Ratings, num_resamples: int
) -> list[LabelerStatus]:
    gold = read_labels(project, "gold")
    every = [*labels, *gold, *read_labels(project, "qualification")]
    accuracy = gold_accuracy(project, gold, num_resamples=num_resamples)
    tau = taus(labels, num_resamples=num_resamples)
    states = _states(project)
    found = []
    for number, name in project.labelers().items():
        own = [label for label in every if label.labeler_id == number]
        seconds = [label.seconds for label in own if label.seconds is not None]
        among = name in ratings.labelers
        found.append(
            LabelerStatus(
                labeler=name,
                submitted=len(own),
                in_progress=states.get((number, "leased"), 0),
                skipped=states.get((number, "skipped"), 0),
                late=sum(label.late for label in own),
                seconds_per_label=float(np.median(seconds)) if seconds else None,
                gold_accuracy=accuracy.get(name),
                agreement_with_others=(
                    agreement_with_others(ratings, name, num_resamples=num_resamples) if among else None
                ),
                tau=tau.get(name),
                order_shown_tau=_order_shown_tau(own),
            )
        )
    return found


def _order_shown_tau(labels: Sequence[Label]) -> float | None:
    """Mean over labels of Kendall's tau-b with the order shown; None where there is none."""
    found = []
    for label in labels:
        if label.shown is not None:
            places = [label.shown.index(number) + 1 for number in range(len(label.ranks))]
            tau = kendall_tau(label.ranks, tuple(places))
            if tau is not None:
                found.append(tau)
    return float(np.mean(found)) if found else None


def _states(project: Project) -> dict[tuple[int, str], int]:
    columns = (work.c.labeler_id, work.c.state)
    with project.database.read() as connection:
        rows = connection.execute(select(*columns, func.count()).group_by(*columns)).all()
    return {(labeler_id, state): number for labeler_id, state, number in rows}


def _share(rows: Sequence[tuple[float, float]], num_resamples: int) -> Estimate | None:
    def ratio(
        sums_F: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        with np.errstate(invalid="ignore"):
            return np.asarray(sums_F[..., 0] / sums_F[..., 1])

    return bootstrap(np.array(rows, dtype=np.float64), ratio, num_resamples=num_resamples)

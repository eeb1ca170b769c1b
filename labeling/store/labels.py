"""The labels in force: of each labeler and item the last submission, unless it was undone."""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from labeling.store.judgements import Judgement
from labeling.store.project import ItemKind, Project
from labeling.store.tables import events, items, labelers, work
from rlhf.data.records import Comparison, Rank


@dataclass(frozen=True)
class Label:
    """What one labeler says of one item, in the item's own order of completions."""

    event_id: int
    item_id: int
    labeler_id: int
    labeler: str
    judgement: Judgement
    at: float
    """Seconds since 1970."""
    seconds: float | None
    """Working time; None for an imported label."""
    late: bool
    """Whether it came after its lease had run out."""
    comparisons: tuple[Comparison, ...] | None = None
    """The probabilities behind the ranks, of a labeler that gives any."""
    shown: tuple[int, ...] | None = None
    """The completions' numbers in the order in which the labeler saw them; None for an imported label."""

    @property
    def ranks(self) -> tuple[Rank, ...]:
        assert self.judgement.complete
        return tuple(rank for rank in self.judgement.ranks if rank is not None)


def read_labels(project: Project, kind: ItemKind = "item") -> list[Label]:
    """All labels in force of items of one kind, by item and then by labeler."""
    with project.database.read() as connection:
        return labels_of_kind(connection, kind)


def labels_of_kind(connection: Connection, kind: ItemKind, *, labeler_id: int | None = None) -> list[Label]:
    """As `read_labels`, inside a transaction; of one labeler only, if named."""
    query = _query().where(items.c.kind == kind).order_by(work.c.item_id, labelers.c.id)
    if labeler_id is not None:
        query = query.where(work.c.labeler_id == labeler_id)
    return [_label(row) for row in connection.execute(query)]


def _query() -> Select[Any]:
    return (
        select(
            events.c.id,
            work.c.item_id,
            work.c.labeler_id,
            labelers.c.name,
            events.c.data,
            events.c.at,
            events.c.seconds,
            events.c.shown,
        )
        .join(events, events.c.id == work.c.event_id)
        .join(items, items.c.id == work.c.item_id)
        .join(labelers, labelers.c.id == work.c.labeler_id)
        .where(work.c.state == "submitted")
    )


def _label(row: Row[Any]) -> Label:
    data = json.loads(row.data)
    return Label(
        event_id=row.id,
        item_id=row.item_id,
        labeler_id=row.labeler_id,
        labeler=row.name,
        judgement=Judgement.from_json(data["judgement"]),
        at=row.at,
        seconds=row.seconds,
        late=data["late"],
        comparisons=tuple((i, j, p) for i, j, p in data["comparisons"]) if "comparisons" in data else None,
        shown=tuple(json.loads(row.shown)) if data.get("source") == "session" else None,
    )

"""Items on which labelers disagree, and the final decisions on them."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select
from sqlalchemy.engine import RowMapping

from labeling.analysis.agreement import Ratings, item_agreement
from labeling.analysis.consensus import Consensus, consensus
from labeling.store.judgements import Judgement
from labeling.store.labels import Label, read_labels
from labeling.store.ledger import Event, record
from labeling.store.project import Project, StoredItem
from labeling.store.tables import events, items
from rlhf.data.records import Rank
from rlhf.errors import UserError

MAX_ID = 2**63 - 1


@dataclass(frozen=True)
class Decision:
    """The final word on an item, in its own order of completions; the newest counts."""

    item_id: int
    ranks: tuple[Rank, ...]
    by: int
    """The adjudicator's number among the labelers."""
    note: str
    event_id: int


@dataclass(frozen=True)
class Dispute:
    """An item that somebody should decide."""

    item_id: int
    agreement: float
    """Share of (pair of completions, two labelers) with the same judgement."""
    labels: tuple[Label, ...]
    consensus: Consensus


def by_item(labels: Sequence[Label]) -> dict[int, list[Label]]:
    """Item → its labels, both in the order given."""
    found: defaultdict[int, list[Label]] = defaultdict(list)
    for label in labels:
        found[label.item_id].append(label)
    return dict(found)


def disputes(project: Project, *, threshold: float, decided: bool = False) -> list[Dispute]:
    """Items whose labels agree less than `threshold` or go round in a circle, the worst first.

    Those that have been decided are left out unless `decided`.
    """
    labels = read_labels(project)
    done = {} if decided else decisions(project)
    grouped = by_item(labels)
    ratings = Ratings.of(labels)
    shares = dict(zip(ratings.item_ids, item_agreement(ratings).tolist(), strict=True))
    found = []
    for item_id in sorted(grouped):
        if len(grouped[item_id]) < 2 or item_id in done:
            continue
        share = shares.get(item_id, 1.0)  # all completions failed, say both: there is no pair
        joint = consensus([label.ranks for label in grouped[item_id]])
        if share < threshold or joint.cycles:
            found.append(Dispute(item_id, share, tuple(grouped[item_id]), joint))
    return sorted(found, key=lambda dispute: (dispute.agreement, dispute.item_id))


def decide(project: Project, item_id: int, ranks: Sequence[Rank], *, by: str, note: str = "") -> None:
    """Record the final ranks of an item, in its own order of completions.

    Raises:
        UserError: there is no such item, or the ranks do not fit it.
    """
    number = project.labeler_id(by)
    with project.database.write() as transaction:
        query = select(items.c.completions).where(items.c.id == item_id)
        known = 0 < item_id <= MAX_ID  # databases know no larger number
        completions = transaction.connection.execute(query).scalar() if known else None
        if completions is None:
            raise UserError(
                f"there is no item {item_id}",
                where=project.where,
                fix="`adjudicate` without --item lists those on which labelers disagree.",
            )
        allowed = project.rules.model_copy(update={"ties": True})
        final = Judgement(tuple(ranks), note=note).final(len(json.loads(completions)), allowed)
        data = {"ranks": list(final.ranks), "note": note}
        record(transaction, Event(kind="adjudicated", item_id=item_id, labeler_id=number, data=data))


def decisions(project: Project) -> dict[int, Decision]:
    """Item → the newest decision on it that was not taken back."""
    with project.database.read() as connection:
        return _in_force(connection.execute(_query()).mappings())


def decision_on(connection: Connection, item_id: int) -> Decision | None:
    """The newest decision on an item that was not taken back."""
    return _in_force(connection.execute(_query().where(events.c.item_id == item_id)).mappings()).get(item_id)


def anonymous(project: Project, item: StoredItem, labels: Sequence[Label]) -> list[Label]:
    """An item's labels in an order that tells nothing of their labelers and is always the same."""
    mixed = list(labels)
    random.Random(f"{project.rules.seed}|{item.key}|labels").shuffle(mixed)
    return mixed


def _query() -> Select[Any]:
    return select(events).where(events.c.kind.in_(("adjudicated", "reopened"))).order_by(events.c.id)


def _in_force(rows: Iterable[RowMapping]) -> dict[int, Decision]:
    made: dict[int, Decision] = {}
    for row in rows:
        data = json.loads(row["data"])
        if row["kind"] == "reopened":
            made.pop(data["undoes"], None)
        else:
            ranks = tuple(data["ranks"])
            made[row["id"]] = Decision(row["item_id"], ranks, row["labeler_id"], data["note"], row["id"])
    return {decision.item_id: decision for decision in made.values()}

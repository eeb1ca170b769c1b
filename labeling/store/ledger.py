"""Events, and what follows from them: every change of a labeling project is one event, written here.

`record` appends an event and brings `work` and `queue` up to date in the same transaction; `replay` makes the
two again from the events alone, by the same code. Only signs of life (a heartbeat, a draft saved unchanged)
are no events; a replay forgets them. So what each event means is said once:

    kind         means                                                         held by
    assigned     the labeler has the item until `lease_until`                  +1
    resumed      another terminal of the labeler resumes it
    saved        what has been entered so far
    left         the terminal was closed; the lease runs on
    expired      the lease is over; another labeler may have the item          -1
    submitted    the labeler's label, also a late, a second or an imported one +1 unless they held it
    skipped      the labeler does not want it, with a reason                   -1 if they held it
    undone       a submission or a skip is taken back: leased again            +1 after a skip
    flagged      something is wrong with the item
    adjudicated  the final decision on the item
    reopened     a decision is taken back
    passed       an adjudicator leaves the item undecided, with a reason
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import and_, bindparam, delete, insert, literal, select, update
from sqlalchemy.engine import RowMapping

from labeling.store.database import Database, Transaction
from labeling.store.judgements import dumps
from labeling.store.tables import events, items, queue, work

Kind = Literal[
    "assigned",
    "resumed",
    "saved",
    "left",
    "expired",
    "submitted",
    "skipped",
    "undone",
    "flagged",
    "adjudicated",
    "reopened",
    "passed",
]
# Statements of every key and submission, put together once: that is half of what they cost.
_APPEND = insert(events).returning(events.c.id)
_WORK_OF = select(work).where(
    work.c.item_id == bindparam("item_id"), work.c.labeler_id == bindparam("labeler_id")
)
NO_WORK = ("flagged", "adjudicated", "reopened", "passed")
"""Events that change nobody's place in the work on an item."""
HELD = ("leased", "submitted")
"""States that count towards an item's overlap."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to an item; who did it is None for what the clock did."""

    kind: Kind
    item_id: int
    labeler_id: int | None = None
    session: str | None = None
    submission: str | None = None
    shown: tuple[int, ...] | None = None
    seconds: float | None = None
    data: dict[str, Any] = field(default_factory=dict)


def record(transaction: Transaction, event: Event) -> int:
    """Append the event, bring `work` and `queue` up to date, and return the event's number."""
    values = {
        "at": transaction.now,
        "kind": event.kind,
        "item_id": event.item_id,
        "labeler_id": event.labeler_id,
        "session": event.session,
        "submission": event.submission,
        "shown": None if event.shown is None else dumps(event.shown),
        "seconds": event.seconds,
        "data": dumps(event.data),
    }
    number = transaction.connection.execute(_APPEND, values).scalar_one()
    _follow(transaction, event, number)
    return int(number)


def work_of(transaction: Transaction, item_id: int, labeler_id: int) -> RowMapping | None:
    """Where a labeler stands with an item."""
    mine = {"item_id": item_id, "labeler_id": labeler_id}
    return transaction.connection.execute(_WORK_OF, mine).mappings().one_or_none()


def replay(database: Database) -> None:
    """Make `work` and `queue` again from the items and the events, as if everything happened once more."""
    with database.write() as transaction:
        connection = transaction.connection
        connection.execute(delete(work))
        connection.execute(delete(queue))
        blank = select(items.c.id, items.c.kind, items.c.priority, literal(0))
        connection.execute(insert(queue).from_select(["item_id", "kind", "priority", "num_held"], blank))
        for row in connection.execute(select(events).order_by(events.c.id)).mappings().all():
            event = Event(
                kind=row["kind"],
                item_id=row["item_id"],
                labeler_id=row["labeler_id"],
                session=row["session"],
                shown=None if row["shown"] is None else tuple(json.loads(row["shown"])),
                data=json.loads(row["data"]),
            )
            _follow(Transaction(connection, row["at"]), event, row["id"])


def _follow(transaction: Transaction, event: Event, number: int) -> None:
    """Bring `work` and `queue` up to date with one event."""
    if event.labeler_id is None or event.kind in NO_WORK:
        return
    before = work_of(transaction, event.item_id, event.labeler_id)
    changes = _changes(event, number, transaction.now)
    mine = and_(work.c.item_id == event.item_id, work.c.labeler_id == event.labeler_id)
    if before is None:
        assert event.shown is not None, "a labeler's first event with an item says in which order they saw it"
        first = {
            "item_id": event.item_id,
            "labeler_id": event.labeler_id,
            "shown": dumps(event.shown),
            "lease_until": transaction.now,
            "seen_at": transaction.now,
        }
        transaction.connection.execute(insert(work).values({**first, **changes}))
    else:
        transaction.connection.execute(update(work).where(mine).values(changes))
    was = before["state"] if before is not None else None
    now = changes.get("state", was)
    step = (now in HELD) - (was in HELD)
    if step:
        held = update(queue).where(queue.c.item_id == event.item_id)
        transaction.connection.execute(held.values(num_held=queue.c.num_held + step))


def _changes(event: Event, number: int, now: float) -> dict[str, Any]:
    """The columns of `work` that an event sets."""
    data = event.data
    present = {"session": event.session, "seen_at": now}
    if event.kind in ("assigned", "undone"):
        changed = {"state": "leased", "event_id": None, "lease_until": data["lease_until"], **present}
        return changed | ({"draft": dumps(data["draft"])} if "draft" in data else {})
    if event.kind == "resumed":
        return {"lease_until": data["lease_until"], **present}
    if event.kind == "saved":
        return {"draft": dumps(data["draft"]), "lease_until": data["lease_until"], **present}
    if event.kind == "left":
        return {"session": None, "seen_at": 0.0}
    if event.kind == "expired":
        return {"state": "expired", "session": None}
    if event.kind == "submitted":
        return {"state": "submitted", "event_id": number, "draft": dumps(data["judgement"]), **present}
    assert event.kind == "skipped", event.kind
    return {"state": "skipped", "event_id": number, **present}

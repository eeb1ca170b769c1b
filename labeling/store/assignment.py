"""Which item a labeler gets next.

All of it happens inside one writing transaction, so no two labelers are given the last place of an item. In
order: what another terminal of the labeler has left half-done; the qualification round; now and then a gold
item; then the open items, by the project's rules.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Select, and_, exists, func, or_, select

from labeling.store.database import Transaction
from labeling.store.judgements import implied_pairs
from labeling.store.labels import labels_of_kind
from labeling.store.ledger import Event, record
from labeling.store.project import ItemKind, item_row, stored_item
from labeling.store.rules import LabelingRules
from labeling.store.tables import items, queue, work

Reason = Literal["finished", "held_by_others", "qualifying_elsewhere", "not_qualified"]


@dataclass(frozen=True)
class NoTask:
    """There is nothing for this labeler now."""

    reason: Reason
    message: str
    """For the labeler."""


_MESSAGES: dict[Reason, str] = {
    "finished": "Nothing is left for you: every item has its labels, or yours. Thank you.",
    "held_by_others": "Nothing is left for you now; what others have open may come back. Try again later.",
    "qualifying_elsewhere": "Finish the qualification round in your other terminal first.",
    "not_qualified": "Your qualification round differs too much from the known answers. "
    "Please ask the person who set up the project.",
}


@dataclass(frozen=True)
class Terminal:
    """Who asks, and from which of their terminals."""

    labeler_id: int
    labeler: str
    session: str


def next_item(transaction: Transaction, terminal: Terminal, rules: LabelingRules) -> int | NoTask:
    """Lease the labeler's next item to this terminal and return its number.

    A terminal that holds an item already gets the same again.
    """
    expire(transaction)
    held = _held_here(transaction, terminal)
    if held is not None:
        return held
    left = _left_behind(transaction, terminal, rules)
    if left is not None:
        lease = {"lease_until": transaction.now + rules.lease_seconds}
        record(
            transaction,
            Event(
                kind="resumed",
                item_id=left,
                labeler_id=terminal.labeler_id,
                session=terminal.session,
                data=lease,
            ),
        )
        return left
    chosen = _choose(transaction, terminal, rules)
    if not isinstance(chosen, int):
        return NoTask(chosen, _MESSAGES[chosen])
    assign(transaction, terminal, chosen, rules)
    return chosen


def expire(transaction: Transaction) -> None:
    """End every lease that is over."""
    over = select(work.c.item_id, work.c.labeler_id).where(
        work.c.state == "leased", work.c.lease_until < transaction.now
    )
    for item_id, labeler_id in transaction.connection.execute(over.order_by(work.c.item_id)).all():
        record(transaction, Event(kind="expired", item_id=item_id, labeler_id=labeler_id))


def assign(transaction: Transaction, terminal: Terminal, item_id: int, rules: LabelingRules) -> None:
    """Lease an item to the labeler, in the order of completions that is theirs."""
    item = stored_item(item_row(transaction.connection, item_id))
    record(
        transaction,
        Event(
            kind="assigned",
            item_id=item_id,
            labeler_id=terminal.labeler_id,
            session=terminal.session,
            shown=shown_order(rules.seed, terminal.labeler, item.key, len(item.completions)),
            data={"lease_until": transaction.now + rules.lease_seconds},
        ),
    )


def shown_order(seed: int, labeler: str, key: str, num_completions: int) -> tuple[int, ...]:
    """The order in which a labeler sees an item's completions: always the same, and nobody else's."""
    order = list(range(num_completions))
    random.Random(f"{seed}|{labeler}|{key}").shuffle(order)
    return tuple(order)


def qualification(transaction: Transaction, labeler_id: int) -> float | None:
    """Share of the pairs of all qualification items that the labeler judged as their answers do.

    A pair of an item that they have skipped or not finished counts as judged otherwise. None if there are no
    such items.
    """
    query = select(items).where(items.c.kind == "qualification")
    trials = [stored_item(row) for row in transaction.connection.execute(query).mappings()]
    if not trials:
        return None
    labels = labels_of_kind(transaction.connection, "qualification", labeler_id=labeler_id)
    given = {label.item_id: label for label in labels}
    right = total = 0
    for item in trials:
        truth = implied_pairs(item.answer or ())
        said = set(implied_pairs(given[item.item_id].ranks)) if item.item_id in given else set()
        total += len(truth)
        right += sum(pair in said for pair in truth)
    return right / total if total else None


def _held_here(transaction: Transaction, terminal: Terminal) -> int | None:
    mine = (
        work.c.labeler_id == terminal.labeler_id,
        work.c.state == "leased",
        work.c.session == terminal.session,
    )
    query = select(work.c.item_id).where(*mine).order_by(work.c.lease_until, work.c.item_id).limit(1)
    return transaction.connection.execute(query).scalar()


def _left_behind(transaction: Transaction, terminal: Terminal, rules: LabelingRules) -> int | None:
    """An item that a terminal of this labeler held which has been closed, or silent for too long."""
    silent = transaction.now - rules.presence_seconds
    query = (
        select(work.c.item_id)
        .where(work.c.labeler_id == terminal.labeler_id, work.c.state == "leased")
        .where(or_(work.c.session.is_(None), work.c.seen_at < silent))
        .order_by(work.c.draft.is_(None), work.c.item_id)
        .limit(1)
    )
    return transaction.connection.execute(query).scalar()


def _choose(transaction: Transaction, terminal: Terminal, rules: LabelingRules) -> int | Reason:
    connection = transaction.connection
    trial = connection.execute(_new_to(terminal, "qualification").order_by(queue.c.item_id).limit(1)).scalar()
    if trial is not None:
        return int(trial)
    accuracy = qualification(transaction, terminal.labeler_id)
    if accuracy is not None and _is_qualifying(transaction, terminal):
        return "qualifying_elsewhere"
    if accuracy is not None and accuracy < rules.qualification_accuracy:
        return "not_qualified"
    open_items = _new_to(terminal, "item").where(queue.c.num_held < rules.overlap)
    if rules.order == "uncertainty":
        open_items = open_items.order_by(queue.c.priority.desc(), queue.c.num_held, queue.c.item_id)
    else:
        open_items = open_items.order_by(queue.c.num_held, queue.c.priority.desc(), queue.c.item_id)
    chosen = connection.execute(open_items.limit(1)).scalar()
    if chosen is None:
        return "held_by_others" if _some_may_come_back(transaction, terminal) else "finished"
    gold = _gold(transaction, terminal, rules)
    return int(chosen) if gold is None else gold


def _gold(transaction: Transaction, terminal: Terminal, rules: LabelingRules) -> int | None:
    """A gold item in place of the next item, in `gold_share` of the cases, if one is new to the labeler."""
    connection = transaction.connection
    mine = select(func.count()).select_from(work).where(work.c.labeler_id == terminal.labeler_id)
    number = connection.execute(mine).scalar_one()
    rng = random.Random(f"{rules.seed}|{terminal.labeler}|gold|{number}")
    if rng.random() >= rules.gold_share:
        return None
    new: Sequence[int] = (
        connection.execute(_new_to(terminal, "gold").order_by(queue.c.item_id)).scalars().all()
    )
    return rng.choice(new) if new else None


def _new_to(terminal: Terminal, kind: ItemKind) -> Select[int]:
    """Items of a kind that the labeler neither has nor has had; one that expired on them is new again."""
    theirs = exists().where(
        and_(
            work.c.item_id == queue.c.item_id,
            work.c.labeler_id == terminal.labeler_id,
            work.c.state != "expired",
        )
    )
    return select(queue.c.item_id).where(queue.c.kind == kind, ~theirs)


def _is_qualifying(transaction: Transaction, terminal: Terminal) -> bool:
    mine = (work.c.labeler_id == terminal.labeler_id, work.c.state == "leased")
    query = select(work.c.item_id).join(queue, queue.c.item_id == work.c.item_id)
    rest = query.where(queue.c.kind == "qualification", *mine).limit(1)
    return transaction.connection.execute(rest).scalar() is not None


def _some_may_come_back(transaction: Transaction, terminal: Terminal) -> bool:
    """Whether someone else's lease, if it ran out, would open an item for this labeler."""
    leased = (
        select(work.c.item_id)
        .where(work.c.state == "leased", work.c.labeler_id != terminal.labeler_id)
        .where(work.c.item_id.in_(_new_to(terminal, "item")))
        .limit(1)
    )
    return transaction.connection.execute(leased).scalar() is not None

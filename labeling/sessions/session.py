"""A labeler at a terminal: all that a screen, a browser page, a plain prompt or a script needs to know.

    with Session(project, "ann") as session:
        task = session.next()                       # a Task, or a NoTask that says why
        session.save(task, judgement)               # after a key: what is half-done survives anything
        session.submit(task, judgement, submission=new_submission())
        session.undo()                              # the last submission or skip comes back as a Task

Nothing is kept here that the database does not have, but the clock of the labeler's working time: a session
that is killed loses nothing, and the labeler's next one resumes with what was left.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Self

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.engine import RowMapping

from labeling.sanitize import labeler_name
from labeling.sessions.labeling_session import LabelerProgress, Receipt
from labeling.store.assignment import NoTask, Terminal, next_item
from labeling.store.database import Transaction
from labeling.store.judgements import Judgement, Task
from labeling.store.ledger import HELD, Event, Kind, record, work_of
from labeling.store.project import Project, StoredItem, item_row, stored_item
from labeling.store.tables import events, queue, work
from rlhf.errors import UserError

MAX_REASON_CHARACTERS = 1000


class WorkingTime:
    """Seconds that somebody has worked, in which a pause counts up to `idle_seconds`."""

    def __init__(self, idle_seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle, self._clock = idle_seconds, clock
        self._last, self._sum = clock(), 0.0

    def touch(self) -> float:
        """Note that a key was pressed; returns the seconds so far."""
        now = self._clock()
        self._sum += min(now - self._last, self._idle)
        self._last = now
        return self._sum


class Session:
    """One labeler in one terminal. Its methods may be called from several threads.

    Raises:
        UserError: the labeler's name cannot be one.
    """

    def __init__(
        self, project: Project, labeler: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.project, self.rules = project, project.rules
        self.labeler = labeler_name(labeler)
        self.session_id = uuid.uuid4().hex
        self._terminal = Terminal(project.labeler_id(self.labeler), self.labeler, self.session_id)
        self._clock = clock
        self._timers: dict[int, WorkingTime] = {}
        self._num_items = project.num_items()
        self._submitted, self._seconds = 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def next(self) -> Task | NoTask:
        """The labeler's next item, leased to this terminal; the same one until it is submitted or skipped."""
        with self.project.database.write() as transaction:
            return self._next(transaction)

    def touch(self, task: Task) -> float:
        """Note a key press that changes nothing; returns the working seconds on this item so far."""
        return self._timer(task.item_id).touch()

    def heartbeat(self, task: Task) -> bool:
        """Say that this terminal is alive, every third of `presence_seconds` or so; the lease stays as it is.

        False if the item is no longer leased to this terminal.
        """
        mine = and_(self._mine(task.item_id), work.c.session == self.session_id, work.c.state == "leased")
        with self.project.database.write() as transaction:
            seen = update(work).where(mine).values(seen_at=transaction.now)
            return transaction.connection.execute(seen).rowcount == 1

    def save(self, task: Task, draft: Judgement) -> bool:
        """Keep what has been entered so far, in the order shown, and prolong the lease.

        False, and nothing is kept, if the item is no longer leased to this terminal.

        Raises:
            UserError: the draft does not fit the item.
        """
        draft.checked(
            len(task.completions), self.rules
        )  # and kept as it was typed, which the screen shows again
        seconds = self.touch(task)
        with self.project.database.write() as transaction:
            row = work_of(transaction, task.item_id, self._terminal.labeler_id)
            if row is None or row["state"] != "leased" or row["session"] != self.session_id:
                return False
            data = self._lease(transaction) | {"draft": draft.in_own_order(_shown(row)).to_json()}
            if row["draft"] is None or json.loads(row["draft"]) != data["draft"]:
                record(transaction, self._event("saved", task.item_id, seconds=seconds, data=data))
            else:
                prolonged = update(work).where(self._mine(task.item_id))
                transaction.connection.execute(
                    prolonged.values(lease_until=data["lease_until"], seen_at=transaction.now)
                )
        return True

    def submit(
        self, task: Task, judgement: Judgement, *, submission: str, seconds: float | None = None
    ) -> Receipt:
        """Hand in a judgement, in the order shown. When this returns, it is safe.

        `submission` is the caller's own name for this act (`new_submission`): calling again with the same
        one, after an error or a lost connection, adds nothing. A submission is taken also when its lease has
        run out. The labeler's second submission of an item takes the place of the first, which stays on
        record. `seconds` of work are measured here unless given.

        Raises:
            UserError: the judgement is incomplete or does not fit, or the item was never this labeler's.
        """
        final = judgement.final(len(task.completions), self.rules)
        spent = self.touch(task) if seconds is None else seconds
        with self.project.database.write() as transaction:
            receipt = self._handed_in(transaction, task, final, submission, spent)
        self._count(task, receipt, spent)
        return receipt

    def submit_and_next(
        self, task: Task, judgement: Judgement, *, submission: str
    ) -> tuple[Receipt, Task | NoTask]:
        """`submit` and then `next`, as one transaction: the disk is waited for once.

        Raises:
            UserError: as `submit`.
        """
        final = judgement.final(len(task.completions), self.rules)
        spent = self.touch(task)
        with self.project.database.write() as transaction:
            receipt = self._handed_in(transaction, task, final, submission, spent)
            following = self._next(transaction)
        self._count(task, receipt, spent)
        return receipt, following

    def skip(self, task: Task, reason: str) -> None:
        """Hand the item back for good, with a reason.

        Raises:
            UserError: no reason, or the item was never this labeler's.
        """
        text = checked_reason(reason, "skip")
        seconds = self.touch(task)
        with self.project.database.write() as transaction:
            row = self._own(transaction, task.item_id)
            if row["state"] != "skipped":
                data = {"reason": text}
                record(transaction, self._event("skipped", task.item_id, seconds=seconds, data=data))
        self._timers.pop(task.item_id, None)

    def flag(self, task: Task, reason: str) -> None:
        """Say that something is wrong with the item itself; it stays where it is.

        Raises:
            UserError: no reason, or the item was never this labeler's.
        """
        text = checked_reason(reason, "flag")
        self.touch(task)
        with self.project.database.write() as transaction:
            self._own(transaction, task.item_id)
            record(transaction, self._event("flagged", task.item_id, data={"reason": text}))

    def undo(self) -> Task | None:
        """Take back the last submission or skip, which is leased again with what was entered; None if none.

        The last of this terminal; in a terminal that has none yet, the labeler's last. A skip cannot be taken
        back when others have taken the item since, and then the one before is meant.
        """
        with self.project.database.write() as transaction:
            for row in self._undoable(transaction):
                data = self._lease(transaction) | {"undoes": row["event_id"]}
                event = self._event("undone", row["item_id"], shown=_shown(row), data=data)
                record(transaction, event)
                return self._task(transaction, row["item_id"])
        return None

    def leave(self) -> None:
        """Close this terminal: the labeler's next one resumes at once with what is half-done here."""
        held = and_(work.c.session == self.session_id, work.c.state == "leased")
        with self.project.database.write() as transaction:
            mine = select(work.c.item_id).where(work.c.labeler_id == self._terminal.labeler_id, held)
            for item_id in transaction.connection.execute(mine).scalars().all():
                record(transaction, self._event("left", item_id))

    def progress(self) -> LabelerProgress:
        """How far the labeler is, and the project."""
        mine = work.c.labeler_id == self._terminal.labeler_id
        counts = select(work.c.state, func.count()).where(mine).group_by(work.c.state)
        full = select(func.count()).select_from(queue)
        full = full.where(queue.c.kind == "item", queue.c.num_held >= self.rules.overlap)
        with self.project.database.read() as connection:
            states = {state: number for state, number in connection.execute(counts)}
            num_full = int(connection.execute(full).scalar_one())
        return LabelerProgress(
            submitted=states.get("submitted", 0),
            skipped=states.get("skipped", 0),
            submitted_here=self._submitted,
            seconds_here=self._seconds,
            num_items=self._num_items,
            num_full=num_full,
        )

    def _next(self, transaction: Transaction) -> Task | NoTask:
        found = next_item(transaction, self._terminal, self.rules)
        return found if isinstance(found, NoTask) else self._task(transaction, found)

    def _handed_in(
        self, transaction: Transaction, task: Task, final: Judgement, submission: str, spent: float
    ) -> Receipt:
        before = select(events).where(events.c.submission == submission)
        known = transaction.connection.execute(before).mappings().one_or_none()
        if known is not None:
            return self._repeated(known, task)
        row = self._own(transaction, task.item_id)
        shown = _shown(row)
        late = row["state"] == "expired"
        event = self._event("submitted", task.item_id, shown=shown, seconds=spent, submission=submission)
        event.data.update(judgement=final.in_own_order(shown).to_json(), late=late, source="session")
        return Receipt(record(transaction, event), late=late)

    def _count(self, task: Task, receipt: Receipt, spent: float) -> None:
        if not receipt.repeated:
            self._timers.pop(task.item_id, None)
            self._submitted, self._seconds = self._submitted + 1, self._seconds + spent

    def _task(self, transaction: Transaction, item_id: int) -> Task:
        item = stored_item(item_row(transaction.connection, item_id))
        mine = work_of(transaction, item_id, self._terminal.labeler_id)
        assert mine is not None
        shown = _shown(mine)
        self._timers[item_id] = WorkingTime(self.rules.idle_seconds, clock=self._clock)
        return Task(
            item_id=item_id,
            prompt=item.prompt,
            completions=tuple(item.completions[number] for number in shown),
            draft=_draft(mine, item).in_shown_order(shown),
            lease_until=mine["lease_until"],
        )

    def _repeated(self, known: RowMapping, task: Task) -> Receipt:
        if (known["labeler_id"], known["item_id"]) != (self._terminal.labeler_id, task.item_id):
            raise UserError(
                "this submission's name stands for another one", fix="Make a new name for each submission."
            )
        return Receipt(known["id"], repeated=True, late=json.loads(known["data"])["late"])

    def _own(self, transaction: Transaction, item_id: int) -> RowMapping:
        row = work_of(transaction, item_id, self._terminal.labeler_id)
        if row is None:
            raise UserError(
                f"item {item_id} was never given to {self.labeler}", fix="Take the next item and rank that."
            )
        return row

    def _undoable(self, transaction: Transaction) -> list[RowMapping]:
        """What `undo` may take back, the last first; at most one."""
        query = (
            select(work)
            .join(events, events.c.id == work.c.event_id)
            .join(queue, queue.c.item_id == work.c.item_id)
            .where(work.c.labeler_id == self._terminal.labeler_id, work.c.state.in_(("submitted", "skipped")))
            .where(
                (work.c.state.in_(HELD)) | (queue.c.num_held < self.rules.overlap) | (queue.c.kind != "item")
            )
            .order_by(events.c.id.desc())
            .limit(1)
        )
        connection = transaction.connection
        own = connection.execute(query.where(events.c.session == self.session_id)).mappings().all()
        if own or self._submitted:
            return list(own)
        imported = events.c.session.is_not(None)
        return list(connection.execute(query.where(imported)).mappings().all())

    def _mine(self, item_id: int) -> ColumnElement[bool]:
        return and_(work.c.item_id == item_id, work.c.labeler_id == self._terminal.labeler_id)

    def _timer(self, item_id: int) -> WorkingTime:
        fresh = WorkingTime(self.rules.idle_seconds, clock=self._clock)
        return self._timers.setdefault(item_id, fresh)

    def _lease(self, transaction: Transaction) -> dict[str, object]:
        return {"lease_until": transaction.now + self.rules.lease_seconds}

    def _event(
        self,
        kind: Kind,
        item_id: int,
        *,
        shown: tuple[int, ...] | None = None,
        seconds: float | None = None,
        submission: str | None = None,
        data: Mapping[str, object] | None = None,
    ) -> Event:
        return Event(
            kind=kind,
            item_id=item_id,
            labeler_id=self._terminal.labeler_id,
            session=self.session_id,
            submission=submission,
            shown=shown,
            seconds=seconds,
            data=dict(data or {}),
        )


def new_submission() -> str:
    """A name for one submission that no other has."""
    return uuid.uuid4().hex


def _shown(row: RowMapping) -> tuple[int, ...]:
    return tuple(json.loads(row["shown"]))


def _draft(row: RowMapping, item: StoredItem) -> Judgement:
    if row["draft"] is None:
        return Judgement.empty(len(item.completions))
    return Judgement.from_json(json.loads(row["draft"]))


def checked_reason(text: str, verb: str) -> str:
    """The reason that somebody gives to skip or flag an item.

    Raises:
        UserError: it is empty or too long.
    """
    reason = text.strip()
    if not reason:
        raise UserError(f"there is no reason to {verb} it", fix="Say in a few words why.")
    if len(reason) > MAX_REASON_CHARACTERS:
        raise UserError(
            f"the reason has {len(reason):,} characters", fix=f"Keep to {MAX_REASON_CHARACTERS:,}."
        )
    return reason

"""An adjudicator at work: disputed items one after the other, each with all that labelers said of it.

    with Adjudication(project, "eva", threshold=0.7) as adjudication:
        task = adjudication.next()                  # a DisputedTask, or a NoTask that says why
        adjudication.submit(task, judgement, submission=new_submission())

The calls are those of a labeler's `Session`, so the screens are the same. Two things differ: a decision is
quickly made, so what is half entered is not kept; and nothing is leased, so of two decisions on one item the
newer counts.
"""

import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from sqlalchemy import select

from labeling.analysis.decisions import Dispute, anonymous, decision_on, disputes
from labeling.analysis.dispute_summary import DisputedTask
from labeling.sanitize import labeler_name
from labeling.sessions.labeling_session import LabelerProgress, Receipt
from labeling.sessions.session import WorkingTime, checked_reason
from labeling.store.assignment import NoTask, shown_order
from labeling.store.judgements import Judgement, Task
from labeling.store.ledger import Event, Kind, record
from labeling.store.project import Project
from labeling.store.tables import events

NOTHING_LEFT = "No disputed item is left for you to decide. Thank you."


@dataclass(frozen=True)
class DisputeProgress(LabelerProgress):
    """How far an adjudicator is."""

    num_disputed: int

    @property
    def overall(self) -> str:
        return f"{self.num_disputed:,} disputed items left"


@dataclass
class _Case:
    """A disputed item that the adjudicator opened."""

    dispute: Dispute
    task: DisputedTask
    shown: tuple[int, ...]
    time: WorkingTime
    decision: int | None = None
    """The event of the decision; None before, and where the item was passed over."""


class Adjudication:
    """One adjudicator in one terminal. One thread may call `touch` while another makes the other calls.

    Raises:
        UserError: the adjudicator's name cannot be one.
    """

    def __init__(self, project: Project, labeler: str, *, threshold: float) -> None:
        self.project, self.labeler = project, labeler_name(labeler)
        # A decision stands in the place of a consensus, which may tie where labelers must not.
        self.rules = project.rules.model_copy(update={"ties": True, "quality_scores": False})
        self._threshold = threshold
        self._labeler_id, self._session_id = project.labeler_id(self.labeler), uuid.uuid4().hex
        self._queue: deque[Dispute] = deque()
        self._case: _Case | None = None
        self._past: list[_Case] = []
        """Cases that were closed here, the last at the end."""
        self._num_decided, self._seconds = 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def next(self) -> DisputedTask | NoTask:
        """The item on which labelers agree least, of those that nobody has decided."""
        if self._case is None:
            dispute = self._next_dispute()
            if dispute is None:
                return NoTask("finished", NOTHING_LEFT)
            self._case = self._opened(dispute)
        return self._case.task

    def touch(self, task: Task) -> float:
        """Note a key press; returns the working seconds on this item so far."""
        case = self._case
        return 0.0 if case is None else case.time.touch()

    def heartbeat(self, task: Task) -> bool:
        """Nothing is leased, so nothing can be lost."""
        return True

    def save(self, task: Task, draft: Judgement) -> bool:
        """Check what has been entered so far; the screen alone keeps it."""
        draft.checked(len(task.completions), self.rules)
        return True

    def submit(self, task: Task, judgement: Judgement, *, submission: str) -> Receipt:
        """Record the final decision. When this returns, it is safe; sending it again adds nothing.

        Raises:
            UserError: a completion has no rank.
        """
        final = judgement.final(len(task.completions), self.rules)
        with self.project.database.write() as transaction:
            before = select(events.c.id).where(events.c.submission == submission)
            known = transaction.connection.execute(before).scalar()
            if known is None:
                case = self._open_case(task)
                data = {"ranks": list(final.in_own_order(case.shown).ranks), "note": final.note}
                event = self._event("adjudicated", case, data)
                number = record(transaction, replace(event, submission=submission))
            else:
                number = int(known)
        if self._case is not None:
            self._num_decided, self._seconds = self._num_decided + 1, self._seconds + self._case.time.touch()
            self._case.decision, self._case.task = number, replace(self._case.task, draft=final)
            self._close()
        return Receipt(number, repeated=known is not None)

    def submit_and_next(
        self, task: Task, judgement: Judgement, *, submission: str
    ) -> tuple[Receipt, Task | NoTask]:
        """`submit`, and then `next`."""
        return self.submit(task, judgement, submission=submission), self.next()

    def skip(self, task: Task, reason: str) -> None:
        """Leave the item undecided, with a reason; it comes back in the next session.

        Raises:
            UserError: no reason.
        """
        data = {"reason": checked_reason(reason, "skip")}
        with self.project.database.write() as transaction:
            record(transaction, self._event("passed", self._open_case(task), data))
        self._close()

    def flag(self, task: Task, reason: str) -> None:
        """Say that something is wrong with the item itself; it stays where it is.

        Raises:
            UserError: no reason.
        """
        data = {"reason": checked_reason(reason, "flag")}
        with self.project.database.write() as transaction:
            record(transaction, self._event("flagged", self._open_case(task), data))

    def undo(self) -> DisputedTask | None:
        """Take back the last decision of this terminal, or go back to what it passed over; None if none."""
        if not self._past:
            return None
        case = self._past[-1]
        if case.decision is not None:
            with self.project.database.write() as transaction:
                record(transaction, self._event("reopened", case, {"undoes": case.decision}))
            case.decision = None
        self._past.pop()
        if self._case is not None:
            self._queue.appendleft(self._case.dispute)
        self._case = case
        return case.task

    def leave(self) -> None:
        """Nothing is kept that would have to be given back."""

    def progress(self) -> DisputeProgress:
        """How far the adjudicator is."""
        decided = sum(case.decision is not None for case in self._past)
        return DisputeProgress(
            submitted=decided,
            skipped=len(self._past) - decided,
            submitted_here=self._num_decided,
            seconds_here=self._seconds,
            num_items=0,
            num_full=0,
            num_disputed=len(self._queue) + (self._case is not None),
        )

    def _next_dispute(self) -> Dispute | None:
        """The next that nobody has decided in the meantime; the queue is read again when it is empty."""
        if not self._queue:
            passed = {case.task.item_id for case in self._past}
            found = disputes(self.project, threshold=self._threshold)
            self._queue.extend(dispute for dispute in found if dispute.item_id not in passed)
        while self._queue:
            dispute = self._queue.popleft()
            with self.project.database.read() as connection:
                if decision_on(connection, dispute.item_id) is None:
                    return dispute
        return None

    def _opened(self, dispute: Dispute) -> _Case:
        item = self.project.item(dispute.item_id)
        shown = shown_order(self.project.rules.seed, self.labeler, item.key, len(item.completions))
        labels = anonymous(self.project, item, dispute.labels)
        task = DisputedTask(
            item_id=item.item_id,
            prompt=item.prompt,
            completions=tuple(item.completions[number] for number in shown),
            draft=Judgement.empty(len(item.completions)),
            lease_until=float("inf"),
            labels=tuple(label.judgement.in_shown_order(shown) for label in labels),
            consensus=tuple(dispute.consensus.ranks[number] for number in shown),
            in_circle=bool(dispute.consensus.cycles),
            agreement=dispute.agreement,
        )
        return _Case(dispute, task, shown, WorkingTime(self.rules.idle_seconds))

    def _open_case(self, task: Task) -> _Case:
        assert self._case is not None
        assert self._case.task.item_id == task.item_id
        return self._case

    def _close(self) -> None:
        assert self._case is not None
        self._past.append(self._case)
        self._case = None

    def _event(self, kind: Kind, case: _Case, data: Mapping[str, object]) -> Event:
        return Event(
            kind=kind,
            item_id=case.task.item_id,
            labeler_id=self._labeler_id,
            session=self._session_id,
            shown=case.shown,
            seconds=case.time.touch(),
            data=dict(data),
        )

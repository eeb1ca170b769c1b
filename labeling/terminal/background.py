"""A session's calls, made in a thread of their own, so that no key ever waits for the database.

In the order in which they were asked for, one at a time. A call that the database refuses is made again, with
the same submission id, until it succeeds; only drafts that a later one replaces are left out.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from labeling.retry import retry
from labeling.sessions.labeling_session import LabelerProgress, LabelingSession
from labeling.store.assignment import NoTask
from labeling.store.database import STORE_PAUSES, StoreError
from labeling.store.judgements import Judgement, Task
from rlhf.errors import UserError

JobKind = Literal["next", "save", "submit", "skip", "flag", "undo"]


@dataclass(frozen=True)
class Arrived:
    """The next item is here, or there is none; or `undo` brought one back."""

    task: Task | NoTask
    progress: LabelerProgress
    undone: bool = False
    late: bool = False
    """Whether what was submitted before it came after its lease."""


@dataclass(frozen=True)
class Stored:
    """A call is through that brings nothing new."""

    kind: JobKind


@dataclass(frozen=True)
class Lost:
    """The item is no longer leased to this terminal."""

    item_id: int


@dataclass(frozen=True)
class Refused:
    """A call failed: it is made again in `pause` seconds, or, without a pause, given up as a mistake."""

    kind: JobKind
    error: UserError
    pause: float | None


Report = Arrived | Stored | Lost | Refused


@dataclass(frozen=True)
class _Job:
    kind: JobKind
    call: Callable[[], Report | None]
    item_id: int | None = None


class BackgroundSession:
    """Takes jobs from the screen, and reports to it from its own thread by `deliver`."""

    def __init__(self, session: LabelingSession, deliver: Callable[[Report], None]) -> None:
        self._session, self._deliver = session, deliver
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._hurry = self._closing = False
        self._held: Task | None = None
        self._beat_seconds = session.rules.beat_seconds

    def next(self) -> None:
        self._put(_Job("next", self._next))

    def save(self, task: Task, draft: Judgement) -> None:
        def call() -> Report:
            return Stored("save") if self._session.save(task, draft) else Lost(task.item_id)

        self._put(_Job("save", call, task.item_id))

    def submit(self, task: Task, judgement: Judgement, submission: str) -> None:
        """Submit, and fetch the next item."""

        def call() -> Report:
            self._held = None
            receipt, found = self._session.submit_and_next(task, judgement, submission=submission)
            return self._arrived(found, late=receipt.late)

        self._put(_Job("submit", call))

    def skip(self, task: Task, reason: str) -> None:
        def call() -> Report:
            self._session.skip(task, reason)
            self._held = None
            return Stored("skip")

        self._put(_Job("skip", call))
        self.next()

    def flag(self, task: Task, reason: str) -> None:
        def call() -> Report:
            self._session.flag(task, reason)
            return Stored("flag")

        self._put(_Job("flag", call))

    def undo(self) -> None:
        self._put(_Job("undo", self._undo))

    @property
    def num_waiting(self) -> int:
        """Calls that are not through."""
        return len(self._jobs)

    def hurry(self) -> None:
        """Make a refused call again at once."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def close(self) -> None:
        """Let `run` return when everything is through, or when the database refuses."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def run(self) -> None:
        """Work until `close`; in the thread."""
        while (job := self._wait()) is not None:
            self._until_through(job)
            with self._changed:
                self._jobs.popleft()

    def _put(self, job: _Job) -> None:
        with self._changed:
            behind_first = len(self._jobs) > 1  # the first is being made
            last = self._jobs[-1] if behind_first else None
            if last is not None and (last.kind, last.item_id) == ("save", job.item_id) and job.kind == "save":
                self._jobs.pop()
            self._jobs.append(job)
            self._changed.notify_all()

    def _wait(self) -> _Job | None:
        """The first job; it stays in the queue until it is through. Meanwhile the heart beats."""
        while True:
            with self._changed:
                if not self._jobs and not self._closing:
                    self._changed.wait(self._beat_seconds)
                if self._jobs:
                    return self._jobs[0]
                if self._closing:
                    return None
            self._beat()

    def _beat(self) -> None:
        task = self._held
        if task is None:
            return
        try:
            if not self._session.heartbeat(task):
                self._held = None
                self._deliver(Lost(task.item_id))
        except StoreError:
            return  # the next key says so, if it lasts

    def _until_through(self, job: _Job) -> None:
        def wait(error: StoreError, seconds: float) -> None:
            if self._closing:
                raise error
            self._deliver(Refused(job.kind, error, seconds))
            self._sleep(seconds)

        try:
            report = retry(job.call, StoreError, STORE_PAUSES, wait)
        except StoreError:
            return
        except UserError as error:
            self._deliver(Refused(job.kind, error, None))
            if job.kind == "submit":  # the screen waits for an item: the same one again
                self.next()
            return
        if report is not None:
            self._deliver(report)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._changed:
            while not (self._hurry or self._closing) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            self._hurry = False

    def _next(self) -> Report:
        return self._arrived(self._session.next())

    def _arrived(self, found: Task | NoTask, *, late: bool = False) -> Arrived:
        self._held = found if isinstance(found, Task) else None
        return Arrived(found, self._session.progress(), late=late)

    def _undo(self) -> Report | None:
        found = self._session.undo()
        if found is None:
            raise UserError("there is nothing to take back")
        self._held = found
        return Arrived(found, self._session.progress(), undone=True)

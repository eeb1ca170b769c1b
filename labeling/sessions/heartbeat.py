"""The signs of life of a terminal that waits for its labeler, given from a thread of its own."""

import threading
from typing import Self

from labeling.sessions.labeling_session import LabelingSession
from labeling.store.database import StoreError
from labeling.store.judgements import Task


class Heartbeat:
    """While its block runs, the item held stays this terminal's, however long its labeler reads."""

    def __init__(self, session: LabelingSession) -> None:
        self._session = session
        self._seconds = session.rules.beat_seconds
        self._held: Task | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def hold(self, task: Task) -> None:
        """Beat for this item from now on, and for no other."""
        self._held = task

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            task = self._held
            if task is not None:
                self._beat(task)

    def _beat(self, task: Task) -> None:
        try:
            self._session.heartbeat(task)
        except StoreError:
            return  # whatever the labeler enters next says so, if it lasts

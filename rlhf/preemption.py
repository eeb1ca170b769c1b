"""A machine that is taken away: SIGTERM or SIGUSR1 says so, and the process saves its state and ends.

`listen` makes such a signal an exception, `Preempted`, raised wherever the main thread is. What must not be
torn apart stands in a `deferred` block: there the signal is only noted (`requested`), and the exception comes
at the block's end. Further signals change nothing: the first one is being obeyed.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Sent before the end by SLURM (`--signal=USR1@60`, then TERM), Kubernetes and cloud machines (TERM)."""


class Preempted(BaseException):
    """The process is to save and to end, now. No `Exception`, so that no handler of errors keeps it."""


class _Notice:
    """What the signal handler and the main thread tell each other."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.num_deferring = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal_name is not None:
            return
        self.signal_name = signal.Signals(number).name
        if os.environ.get("RANK", "0") == "0":
            # Not print: a write to stderr may be what the signal has interrupted.
            os.write(2, f"{self.signal_name}: saving, then ending\n".encode())
        self.raise_if_due()

    def raise_if_due(self) -> None:
        if self.signal_name is not None and not self.num_deferring:
            raise Preempted(self.signal_name)


_notice = _Notice()


@contextmanager
def listen() -> Iterator[None]:
    """Obey the signals inside the block; elsewhere they do what they did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _notice.signal_name = None
    before = {number: signal.signal(number, _notice.receive) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Finish what is inside the block first. An error inside passes as it is.

    Raises:
        Preempted: at the end, if a signal has come in the block.
    """
    already = requested()
    _notice.num_deferring += 1
    try:
        yield
    finally:
        _notice.num_deferring -= 1
    if not already:
        _notice.raise_if_due()


def requested() -> bool:
    """Whether a signal has come."""
    return _notice.signal_name is not None


def stop() -> NoReturn:
    """End as a signal does, which has come here or to another process of the team."""
    raise Preempted(_notice.signal_name or "a signal to another process")


def check() -> None:
    """Raise `Preempted` if a signal has come and no block defers it.

    An exception that a signal handler raises can be lost (Python drops what is raised in a `__del__`): a loop
    that calls this once a round ends all the same.
    """
    _notice.raise_if_due()

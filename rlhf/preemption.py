"""A machine that is taken away: SIGTERM or SIGUSR1 says so, and the process saves its state and ends.

`listen` makes such a signal an exception, `Preempted`, raised wherever the main thread is. What must not be
interrupted is in a `deferred` block: there the signal is only noted (`requested`), and the exception comes
at the block's end. Further signals change nothing: the first one is being obeyed.

A main thread inside C code, such as a collective that waits for a rank which is gone, receives no signal; and
what is unwound after one may hang in the same way. So a second thread watches the first: if the process has
not ended a few seconds after the signal, or after the deferred block that was under way, that thread saves
what `last_resort` names and ends it.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Sent before the end by SLURM (`--signal=USR1@120`, then TERM), Kubernetes and cloud machines (TERM)."""
PATIENCE_SECONDS = 5.0
"""How long the main thread may take to end by itself: W&B gets three of them."""
_LOOK_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
"""prctl(2)."""

End = Callable[[str, Callable[[], None]], object]
"""Ends the process, given the signal's name and what is to be saved before."""


class Preempted(BaseException):
    """The process is to save and to end, now. No `Exception`, so that no handler of errors keeps it."""


def _nothing() -> None:
    """What there is to save where nothing was registered."""


class _Notice:
    """What the signal handler and the main thread tell each other."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.num_deferring = 0
        self.save: Callable[[], None] = _nothing
        self.is_watched = False
        self.is_over = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal_name is not None or self.is_over:
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


class _Watch:
    """The thread that sees to the end of the process if the main one does not."""

    def __init__(self, end: End) -> None:
        self._end, self._is_over = end, threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Python's handler runs in the main thread; that in C, which writes here, in any.
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._follow, name="preemption", daemon=True).start()

    def close(self) -> None:
        """Leave the process alone: the main thread has come to the end."""
        self._is_over.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)

    def _follow(self) -> None:
        name = self._wait_for_signal()
        since = time.monotonic()
        while name and not self._is_over.wait(_LOOK_SECONDS):
            if _notice.num_deferring:
                since = time.monotonic()
            elif time.monotonic() > since + PATIENCE_SECONDS:
                # From here on the main thread is left alone, should it still receive the signal.
                _notice.signal_name = name
                self._end(name, _notice.save)
                return
        # Not before: further signals are written, too.
        os.close(self._reader)

    def _wait_for_signal(self) -> str | None:
        """Wait for a signal; its name, or None if there was none until `close`."""
        while numbers := os.read(self._reader, 64):
            for number in SIGNALS:
                if number in numbers:
                    return number.name
        return None


def _leave_pipe() -> None:
    """Keep a signal to a forked child from its parent's watch, with which it shares the pipe."""
    if _notice.is_watched:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_pipe)


@contextmanager
def listen(end: End | None = None) -> Iterator[None]:
    """Obey the signals inside the block; elsewhere they do what they did before.

    `end` ends the process from another thread where the main one does not: None lets it hang.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _notice.signal_name, _notice.is_over = None, False
    watch = _Watch(end) if end else None
    _notice.is_watched = watch is not None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, _notice.receive)
        yield
    finally:
        _notice.is_over = True
        if watch:
            watch.close()
        _notice.is_watched = False
        for number, handler in before.items():
            signal.signal(number, handler)
        # What was asked of this block is asked of nothing that runs after it in the same process.
        _notice.signal_name = None


@contextmanager
def last_resort(save: Callable[[], None]) -> Iterator[None]:
    """Inside the block `save` is called before the process is ended from another thread than the main one."""
    before, _notice.save = _notice.save, save
    try:
        yield
    finally:
        _notice.save = before


@contextmanager
def deferred() -> Iterator[None]:
    """Finish what is inside the block first. An error inside passes as it is.

    Raises:
        Preempted: at the end, if a signal has come in the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    already = requested()
    _notice.num_deferring += 1
    try:
        yield
    finally:
        _notice.num_deferring -= 1
    if not already:
        _notice.raise_if_due()


def end_with_parent() -> None:
    """Let this process get SIGTERM when that which has started it dies: a launcher, killed (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)


def requested() -> bool:
    """Whether a signal has come."""
    return _notice.signal_name is not None


def stop() -> NoReturn:
    """End as a signal does, which has come here or to another rank."""
    raise Preempted(_notice.signal_name or "a signal to another process")


def check() -> None:
    """Raise `Preempted` if a signal has come and no block defers it.

    An exception that a signal handler raises can be lost (Python drops what is raised in a `__del__`): a loop
    that calls this once a round ends all the same.
    """
    _notice.raise_if_due()

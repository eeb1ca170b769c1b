"""What a person sees while a stage works and when it ends: progress with the time left, and a small table."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from rlhf.environment import is_rank0

T = TypeVar("T")

PLAIN_SECONDS = 10.0
"""Between two lines of progress where stderr is not a terminal (a log file, a batch system)."""

_WIDTH = 80


class Progress(Generic[T]):
    """Iterates with a bar on stderr, or counts by hand: `with progress(64, "scoring") as bar: bar.update(8)`.

    Where stderr is not a terminal, the bar becomes a plain line at most every `PLAIN_SECONDS`; what ends
    before the first one is silent.
    """

    def __init__(self, items: Iterable[T], total: int | None, desc: str) -> None:
        self._items, self._desc = items, desc
        self._plain = not sys.stderr.isatty()
        self._silent = not is_rank0()
        self._bar = tqdm(
            total=total,
            desc=desc,
            file=sys.stderr,
            disable=self._plain or self._silent,
            ncols=min(shutil.get_terminal_size().columns, _WIDTH),
            nrows=20,  # a terminal that says it has no rows would show nothing
            delay=1.0,
        )
        self._total, self._done = total, 0
        self._started = self._spoken = time.monotonic()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._spoken > self._started and self._done:
            self._say(f"{_duration(time.monotonic() - self._started)} in all")
            self._spoken = self._started

    def update(self, n: int = 1) -> None:
        """Count `n` more as done."""
        self._done += n
        self._bar.update(n)
        now = time.monotonic()
        if self._plain and now - self._spoken >= PLAIN_SECONDS:
            self._spoken = now
            left = ""
            if self._total and self._done:
                remaining = (now - self._started) * (self._total - self._done) / self._done
                left = f", {_duration(remaining)} left"
            self._say(f"{_duration(now - self._started)} so far{left}")

    def note(self, **metrics: Any) -> None:
        """Show metrics behind the bar, on a terminal only."""
        self._bar.set_postfix(metrics, refresh=False)

    def _say(self, text: str) -> None:
        if self._silent:
            return
        done = f"{self._done}/{self._total}" if self._total else str(self._done)
        print(f"{self._desc}: {done}, {text}", file=sys.stderr, flush=True)


@overload
def progress(items: int, desc: str, *, total: int | None = None) -> Progress[int]: ...
@overload
def progress(items: Iterable[T], desc: str, *, total: int | None = None) -> Progress[T]: ...
def progress(items: Iterable[Any] | int, desc: str, *, total: int | None = None) -> Progress[Any]:
    """Show how far `items`, or a count of so many, has come, and how long the rest will take."""
    if isinstance(items, int):
        items = range(items)
    if total is None and isinstance(items, Sized):
        total = len(items)
    return Progress(items, total, desc)


def print_result(
    title: str, rows: Sequence[tuple[str, str]], next_command: str | None = None, *, width: int = _WIDTH
) -> None:
    """Print what came out of a stage, at most `width` columns wide, and the next command.

    The command is on a line of its own, which is never broken, so that it can be copied.
    """
    console = Console(highlight=False)
    console.width = min(console.width, width)
    table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console.print(table)
    if next_command is not None:
        console.print(Text(f"next: {next_command}"), soft_wrap=True)


def _duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

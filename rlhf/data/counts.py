"""What became of every record: how many were read, used, dropped and truncated, and why."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

READ = "read"
TRUNCATED = "truncated"

_FRAME_WIDTH = 13
"""Lines and blanks around the four columns of the table."""
_HEADING_WIDTH = len("dropped, truncated")
_REMARKS_WIDTH = 24
"""What remarks get, if they need it, before sources get the rest of the terminal's width."""
_LEAST_WIDTH = 12
"""What remarks get at least, so that a name in a path need not be broken."""


class RecordCounts:
    """Counts per source, so that nothing is filtered or shortened in silence.

    `add(source, "read")` counts records that came in; `add(source, "truncated")` counts shortened ones, which
    are still used; any other reason counts dropped ones. What is left is used:

        read == used + sum(dropped)      for every source, and for the total

    A stage that drops or truncates records when their source is no longer known (an over-length policy,
    say) adds under the name of that step: a "source" of which nothing was read. It counts in the total.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._notes: dict[str, Counter[str]] = {}
        self._unread: dict[str, Counter[str]] = {}

    def add(self, source: str, reason: str, n: int = 1) -> None:
        """Count `n` records of `source`: "read", "truncated", or a reason for dropping them."""
        if n:
            self._counts.setdefault(source, Counter())[reason] += n

    def note(self, source: str, what: str, n: int = 1) -> None:
        """Count what was left out of records that are still used, such as one pair of several."""
        if n:
            self._counts.setdefault(source, Counter())
            self._notes.setdefault(source, Counter())[what] += n

    def unread(self, source: str, columns: Mapping[str, int]) -> None:
        """Say which columns of `source` nothing reads, and in how many rows they say something."""
        if columns:
            self._counts.setdefault(source, Counter())
            self._unread.setdefault(source, Counter()).update(columns)

    def merge(self, other: "RecordCounts") -> None:
        """Add the counts of `other` to these."""
        for source, counts in other._counts.items():
            self._counts.setdefault(source, Counter()).update(counts)
        for source, notes in other._notes.items():
            self._notes.setdefault(source, Counter()).update(notes)
        for source, columns in other._unread.items():
            self.unread(source, columns)

    def read(self, source: str | None = None) -> int:
        """Records read from `source`, or from all."""
        return self._merged(source)[READ]

    def used(self, source: str | None = None) -> int:
        """Records of `source`, or of all, that were not dropped."""
        return self.read(source) - sum(self.dropped(source).values())

    def dropped(self, source: str | None = None) -> dict[str, int]:
        """Reason → number of records dropped for it."""
        return {reason: n for reason, n in self._merged(source).items() if reason not in (READ, TRUNCATED)}

    def truncated(self, source: str | None = None) -> int:
        """Records that were shortened and used."""
        return self._merged(source)[TRUNCATED]

    def noted(self, source: str | None = None) -> dict[str, int]:
        """What was left out of records that are used → how often."""
        notes = self._notes.values() if source is None else [self._notes.get(source, Counter())]
        return dict(sum(notes, Counter[str]()))

    def not_read(self, source: str) -> dict[str, int]:
        """Column of `source` that nothing reads → rows in which it says something."""
        return dict(self._unread.get(source, Counter()))

    def rows(self) -> list[tuple[str, str, str, str]]:
        """A table's rows: source, read, used, remarks; a last row with the total if there are several."""
        rows = [self._row(source) for source in self._counts]
        return [*rows, self._row(None)] if len(rows) > 1 else rows

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        return {
            "sources": {source: self._summary(source) for source in self._counts if self.read(source)},
            "steps": {
                source: {"dropped": self.dropped(source), "truncated": self.truncated(source)}
                | self._noted(source)
                for source in self._counts
                if not self.read(source)
            },
            "total": self._summary(None),
        }

    def accounts(self) -> dict[str, Any]:
        """The counts with, if there are any, the columns that nothing reads: what a manifest holds."""
        columns = {source: dict(found) for source, found in self._unread.items()}
        return self.to_json() | ({"not_read": columns} if columns else {})

    def print(self, title: str) -> None:
        """Print the counts as a small table."""
        console = Console()
        console.print(self._table(title, console.width))

    def _table(self, title: str, width: int) -> Table:
        rows = self.rows()
        source_width = _source_width(rows, width)
        table = Table(title=Text(title), title_justify="left")
        table.add_column("source", no_wrap=True)
        table.add_column("read", justify="right", no_wrap=True)
        table.add_column("used", justify="right", no_wrap=True)
        table.add_column("dropped, truncated")
        for source, *others in rows:
            lines = path_lines(source, source_width)
            table.add_row(Text("\n".join(lines)), *(Text(cell) for cell in others))
        return table

    def _merged(self, source: str | None) -> Counter[str]:
        if source is not None:
            return self._counts.get(source, Counter())
        total: Counter[str] = Counter()
        for counts in self._counts.values():
            total.update(counts)
        return total

    def _summary(self, source: str | None) -> dict[str, Any]:
        return {
            "read": self.read(source),
            "used": self.used(source),
            "dropped": self.dropped(source),
            "truncated": self.truncated(source),
        } | self._noted(source)

    def _noted(self, source: str | None) -> dict[str, Any]:
        noted = self.noted(source)
        return {"noted": noted} if noted else {}

    def _row(self, source: str | None) -> tuple[str, str, str, str]:
        remarks = [f"{reason}: {n:,}" for reason, n in self.dropped(source).items()]
        if self.truncated(source):
            remarks.append(f"truncated: {self.truncated(source):,}")
        remarks += [f"{what}: {n:,}" for what, n in self.noted(source).items()]
        columns = {} if source is None else self.not_read(source)
        if columns:
            remarks.append(f"not read: {', '.join(f'{name} ({n:,})' for name, n in columns.items())}")
        numbers = ("", "") if not self.read(source) else (f"{self.read(source):,}", f"{self.used(source):,}")
        return ("total" if source is None else source, *numbers, ", ".join(remarks))


def _source_width(rows: Sequence[tuple[str, str, str, str]], width: int) -> int:
    """How wide the column of sources may be in a table of these rows that is `width` wide."""
    read_width = max(len(text) for text in ("read", *(row[1] for row in rows)))
    used_width = max(len(text) for text in ("used", *(row[2] for row in rows)))
    longest_remark = max((len(row[3]) for row in rows), default=0)
    names = [part for row in rows for part in _path_parts(row[0])]
    longest_name = max((len(name) for name in names), default=0)
    left = width - _FRAME_WIDTH - read_width - used_width
    beside_remarks = left - min(max(longest_remark, _HEADING_WIDTH), _REMARKS_WIDTH)
    for_name = min(longest_name, left - _LEAST_WIDTH)
    return max(beside_remarks, for_name, _LEAST_WIDTH)


def path_lines(path: str, width: int) -> list[str]:
    """`path` in lines of at most `width` characters, broken after slashes; a longer name is broken, too."""
    lines = [""]
    for part in _path_parts(path):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > width:
            last = lines.pop()
            lines += [last[:width], last[width:]]
    return lines


def _path_parts(path: str) -> list[str]:
    """The names in a path, each with the slash that follows it."""
    return re.findall(r"[^/]*/|[^/]+$", path)

"""Texts of any length as rows of a given width: wrapped only as far as somebody has looked.

Widths are in cells: a CJK character or an emoji has two. A row is sanitized, and never markup.
"""

from bisect import bisect_right
from collections.abc import Iterator

from rich.cells import split_graphemes

from labeling.sanitize import sanitize

CHUNK = 8_000
"""Characters that are wrapped at once: little enough to be felt by nobody."""


class Wrapped:
    """One text, as the rows that have been made of it so far."""

    def __init__(self, text: str, width: int) -> None:
        self._text, self._width = text, max(1, width)
        self._next, self._open = 0, ""
        self.rows: list[str] = []
        self.extend()

    @property
    def num_left(self) -> int:
        """Characters that have not been wrapped yet."""
        return len(self._text) - self._next

    def extend(self) -> None:
        """Wrap the next part."""
        end = min(self._next + CHUNK, len(self._text))
        if self._text[end - 1 : end + 1] == "\r\n":
            end += 1
        lines = (self._open + sanitize(self._text[self._next : end])).split("\n")
        self._next, self._open = end, ""
        for line in lines:
            self.rows.extend(wrap(line, self._width))
        if self.num_left:  # the last row may continue in the next part
            self._open = self.rows.pop()


class Document:
    """Several wrapped texts below each other, each under a heading row.

    Row 0 of a text is its heading.
    """

    def __init__(self, texts: tuple[str, ...], width: int) -> None:
        self.texts = [Wrapped(text, width) for text in texts]
        self._measure()

    @property
    def height(self) -> int:
        return self._starts[-1]

    def start(self, number: int) -> int:
        """The row of a text's heading."""
        return self._starts[number]

    def end(self, number: int) -> int:
        """The row after a text's last."""
        return self._starts[number + 1]

    def locate(self, row: int) -> tuple[int, int]:
        """Which text a row belongs to, and which of its rows it is."""
        number = min(max(bisect_right(self._starts, row) - 1, 0), len(self.texts) - 1)
        return number, row - self._starts[number]

    def row(self, number: int, row: int) -> str:
        """A row of a text below its heading."""
        text = self.texts[number]
        if row <= len(text.rows):
            return text.rows[row - 1]
        return f"… {text.num_left:,} more characters: scroll on"

    def reach(self, first: int, last: int) -> None:
        """Wrap further where what has been wrapped ends among these rows."""
        for number, text in enumerate(self.texts):
            while text.num_left and first <= self.end(number) - 1 <= last:
                text.extend()
                self._measure()

    def _measure(self) -> None:
        self._starts = [0]
        for text in self.texts:
            self._starts.append(self._starts[-1] + 1 + len(text.rows) + bool(text.num_left))


def wrap(line: str, width: int) -> Iterator[str]:
    """One line as rows of at most `width` cells, broken after a space where there is one."""
    if line.isascii():
        yield from _wrap_ascii(line, width)
        return
    spans, _ = split_graphemes(line)
    start = blank = size = since_blank = 0
    for first, end, cells in spans:
        if size + cells > width and first > start:
            if line[first] == " ":  # it hangs over the edge, where nobody misses it
                yield line[start:first]
                start = blank = end
                size = since_blank = 0
                continue
            cut = blank if line[start:blank].strip(" ") else first
            yield line[start:cut].rstrip(" ")
            size = since_blank if cut == blank else 0
            start = blank = cut
        size += cells
        since_blank += cells
        if line[first] == " ":
            blank, since_blank = end, 0
    yield line[start:]


def _wrap_ascii(line: str, width: int) -> Iterator[str]:
    start = 0
    while len(line) - start > width:
        blank = line.rfind(" ", start, start + width + 1)
        cut = blank if line[start : max(blank, start)].strip(" ") else start + width
        yield line[start:cut].rstrip(" ")
        start = cut + 1 if line[cut] == " " else cut
    yield line[start:]

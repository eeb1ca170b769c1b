"""The screen's single rows, and what it asks in one of them."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

from labeling.sanitize import sanitize_line
from labeling.terminal.style import DIM, PLAIN


class Bar(Widget):
    """One row: pieces of text from the left, and one at the right end if there is room."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._left: tuple[Segment, ...] = ()
        self._right = ""

    def show(self, left: Sequence[Segment], right: str = "") -> None:
        """Replace what is shown."""
        if (tuple(left), right) != (self._left, self._right):
            self._left, self._right = tuple(left), right
            self.refresh()

    @property
    def text(self) -> str:
        """What is shown, as one text."""
        return "".join(segment.text for segment in self._left) + self._right

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y:
            return Strip.blank(width)
        return Strip(fill(self._left, self._right, width)).adjust_cell_length(width, PLAIN)


class Question(Input):
    """An answer in words, on one line; what is pasted is sanitized."""

    def _on_paste(self, event: events.Paste) -> None:
        event.text = sanitize_line(event.text)
        super()._on_paste(event)


def fill(left: Sequence[Segment], right: str, width: int, between: str = " ") -> list[Segment]:
    """`left` and, if there is room for it, `right` at the other end."""
    used = sum(cell_len(segment.text) for segment in left)
    room = width - used - cell_len(right)
    if not right or room < 1:
        return [*left, Segment(between * max(0, width - used), DIM)]
    return [*left, Segment(between * room, DIM), Segment(right, DIM)]

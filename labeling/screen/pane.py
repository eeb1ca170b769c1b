"""Texts below each other under headings, of which the one at the top stays in sight; scrolled by rows.

Rows are drawn one by one as they come into sight, so a text's length makes no difference to a key.
"""

from collections.abc import Callable

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from labeling.screen.wrapping import Document

Heading = Callable[[int, int], Strip]
"""Number of a text and the width → its heading."""

GUTTER = 2
PLAIN = Style()


class TextPane(Widget):
    """Shows texts; `heading` draws what stands above each."""

    class Scrolled(Message):
        """The labeler scrolled."""

        def __init__(self, pane: "TextPane") -> None:
            super().__init__()
            self.pane = pane

    def __init__(self, heading: Heading, *, id: str) -> None:
        super().__init__(id=id)
        self._heading = heading
        self._texts: tuple[str, ...] = ("",)
        self._document: Document | None = None
        self._width = 0
        self.top = 0
        self.mark: int | None = None
        """The text whose gutter is drawn, to show that it is the one in focus."""

    def show(self, texts: tuple[str, ...]) -> None:
        """Replace the texts, from the top."""
        self._texts, self._document, self.top = texts, None, 0
        self.refresh()

    @property
    def document(self) -> Document:
        """The texts, wrapped to the pane's width. At a new width the text at the top stays there."""
        width = max(1, self.size.width - GUTTER - 1)  # a column to spare, where terminals differ about widths
        if self._document is None or width != self._width:
            old, self._width = self._document, width
            self._document = Document(self._texts, width)
            if old is not None:
                number, row = old.locate(self.top)
                share = row / max(1, old.end(number) - old.start(number))
                length = self._document.end(number) - self._document.start(number)
                self.top = self._clamped(self._document.start(number) + int(share * length))
        return self._document

    def rows_wanted(self, width: int) -> int:
        """Rows of everything at a pane's width, as far as it has been wrapped."""
        return Document(self._texts, max(1, width - GUTTER - 1)).height

    def scroll_rows(self, rows: int) -> None:
        """Scroll by so many rows, up if negative."""
        self.document.reach(self.top + min(rows, 0), self.top + max(rows, 0) + self.size.height)
        self.top = self._clamped(self.top + rows)
        self.refresh()
        self.post_message(self.Scrolled(self))

    def page(self, direction: int) -> None:
        self.scroll_rows(direction * max(1, self.size.height - 2))

    def reveal(self, number: int) -> None:
        """Scroll as little as shows the whole text, or its beginning if it is longer than the pane."""
        document, height = self.document, self.size.height
        start, end = document.start(number), document.end(number)
        if end - start >= height or start < self.top:
            self.top = start
        elif end > self.top + height:
            self.top = end - height
        self.top = self._clamped(self.top)
        self.refresh()

    def shows(self, number: int) -> bool:
        """Whether anything of a text below its heading is in sight."""
        document = self.document
        return (
            document.start(number) < self.top + self.size.height - 1 and document.end(number) > self.top + 1
        )

    @property
    def first_visible(self) -> int:
        document = self.document
        number, _ = document.locate(self.top)
        if document.end(number) <= self.top + 1 and number + 1 < len(self._texts):
            return number + 1
        return number

    @property
    def rows_below(self) -> int:
        return max(0, self.document.height - self.top - self.size.height)

    def render_line(self, y: int) -> Strip:
        """One row: its text as it is, in one segment, so that nothing in it is ever markup."""
        width, document = self.size.width, self.document
        position = self.top + y
        if position >= document.height:
            return Strip.blank(width)
        number, row = document.locate(position)
        if y == 0 or row == 0:
            return self._heading(number, width)
        gutter = "▌ " if number == self.mark else "  "
        segments = [Segment(gutter, Style(bold=True)), Segment(document.row(number, row), PLAIN)]
        return Strip(segments).adjust_cell_length(width, PLAIN)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.scroll_rows(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.scroll_rows(-3)

    def _clamped(self, top: int) -> int:
        assert self._document is not None
        return max(0, min(top, self._document.height - self.size.height))

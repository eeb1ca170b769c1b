"""Texts below each other under headings, of which the one at the top stays in sight; scrolled by rows.

Rows are drawn one by one as they come into sight, so a text's length makes no difference to a key.
"""

from collections.abc import Callable

from rich.segment import Segment
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from labeling.terminal.style import BOLD, PLAIN
from labeling.terminal.wrapping import Document

Heading = Callable[[int, int], Strip]
"""Number of a text and the width → its heading."""

GUTTER = 2


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
        self._drawn: dict[int, Strip] = {}
        self._strips: dict[tuple[str, bool, int], Strip] = {}
        self.top = 0
        self.mark: int | None = None
        """The text whose gutter is drawn, to show that it is the one in focus."""

    def show(self, texts: tuple[str, ...]) -> None:
        """Replace the texts, from the top; `redraw` shows them."""
        self._texts, self._document, self.top = texts, None, 0
        self._strips.clear()

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
        self.redraw()
        self.post_message(self.Scrolled(self))

    def page(self, direction: int) -> None:
        self.scroll_rows(direction * max(1, self.size.height - 2))

    def reveal(self, number: int) -> None:
        """Go as little up or down as brings the whole text into sight, or its beginning if it is longer."""
        document, height = self.document, self.size.height
        start, end = document.start(number), document.end(number)
        if end - start >= height or start < self.top:
            self.top = start
        elif end > self.top + height:
            self.top = end - height
        self.top = self._clamped(self.top)

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

    def redraw(self) -> None:
        """Draw the rows that are not as they were drawn last."""
        width, _ = self.size
        changed = [y for y, strip in enumerate(self._rows()) if self._drawn.get(y) != strip]
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def render_lines(self, crop: Region) -> list[Strip]:
        """Rows as they are, without the framework's borders, padding and opacity, which no pane has.

        They would double the cost of a frame on a large terminal.
        """
        rows, filters, (_, background) = self._rows(), self.get_line_filters(), self.background_colors
        found = []
        for y in crop.line_range:
            strip = self._drawn[y] = rows[y]
            for line_filter in filters:
                strip = strip.apply_filter(line_filter, background)
            found.append(strip.crop(crop.x, crop.right))
        return found

    def _rows(self) -> list[Strip]:
        """All rows of the pane as they should be."""
        document, (width, height) = self.document, self.size
        rows = []
        for position in range(self.top, min(self.top + height, document.height)):
            number, row = document.locate(position)
            if row == 0 or position == self.top:
                rows.append(self._heading(number, width))
            else:
                rows.append(self._text_row(number, row, width))
        return rows + [Strip.blank(width)] * (height - len(rows))

    def _text_row(self, number: int, row: int, width: int) -> Strip:
        """One row: its text as it is, in one segment, so that nothing in it is ever markup."""
        assert self._document is not None
        text, marked = self._document.row(number, row), number == self.mark
        key = (text, marked, width)
        if key not in self._strips:
            segments = [Segment("▌ " if marked else "  ", BOLD), Segment(text, PLAIN)]
            self._strips[key] = Strip(segments).adjust_cell_length(width, PLAIN)
        return self._strips[key]

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.scroll_rows(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.scroll_rows(-3)

    def _clamped(self, top: int) -> int:
        assert self._document is not None
        return max(0, min(top, self._document.height - self.size.height))

"""An item on the screen: its prompt and answers, what is entered on them, and which answer is in focus."""

from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import Container
from textual.strip import Strip

from labeling.sessions.labeling_session import LabelerProgress, LabelingSession
from labeling.store.assignment import NoTask
from labeling.terminal.asking import AskingScreen
from labeling.terminal.background import Refused
from labeling.terminal.bars import Bar, Question
from labeling.terminal.draft import Draft
from labeling.terminal.lines import (
    answer_title,
    heading,
    hints,
    message_line,
    prompt_hint,
    rank_line,
    status_line,
    trouble_line,
)
from labeling.terminal.pane import TextPane
from labeling.terminal.style import BOLD, DIM
from rlhf.errors import UserError

MIN_COLUMNS, MIN_ROWS = 40, 12
PANES = ("Prompt", "Labels")
"""What stands in the pane next to the answers; labels only for whoever decides on them."""
WIDE_COLUMNS = 120
"""From here on the prompt stands next to the answers."""


class ItemScreen(AskingScreen, inherit_bindings=False):
    """Draws what there is; `RankingScreen` changes it."""

    def __init__(self, session: LabelingSession) -> None:
        super().__init__()
        self._session = session
        self._draft: Draft | None = None
        self._progress: LabelerProgress | None = None
        self._nothing: NoTask | None = None
        self._trouble: Refused | None = None
        self._warned = self._hurrying = False
        self._said = ""

    def compose(self) -> ComposeResult:
        yield Bar(id="status")
        with Container(id="body"):
            yield TextPane(self._prompt_heading, id="prompt")
            yield TextPane(self._answer_heading, id="answers")
        yield Bar(id="message")
        yield Question(id="question", select_on_focus=False)
        yield Bar(id="ranks")
        yield Bar(id="keys")
        yield Bar(id="small")

    def _find_parts(self) -> None:
        """What `compose` has made; once, when the screen is there."""
        self._prompt, self._answers = (
            self.query_one("#prompt", TextPane),
            self.query_one("#answers", TextPane),
        )
        self._status, self._message, self._ranks, self._keys = (
            self.query_one(f"#{name}", Bar) for name in ("status", "message", "ranks", "keys")
        )
        self._small, self._question = self.query_one("#small", Bar), self.query_one(Question)

    def on_resize(self) -> None:
        self._lay_out()
        self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        self._focus_moved()
        self._draw()

    def on_text_pane_scrolled(self, message: TextPane.Scrolled) -> None:
        """By the mouse; after a key that scrolls the focus has followed already, before any other key."""
        if message.pane is self._answers:
            self._focus_follows()
        self._draw()

    def _focus_follows(self) -> None:
        """The focus follows the eye: keys are never about an answer out of sight."""
        draft, pane = self._draft, self._answers
        if draft is None or self.has_class("-whole-prompt") or pane.shows(draft.focus):
            return
        if draft.is_scoring:
            self._say("No score given")
        draft.focus = pane.first_visible
        pane.mark = draft.focus

    def _scrolling(self) -> TextPane:
        return self._prompt if self.has_class("-whole-prompt") or self._draft is None else self._answers

    def _focus_moved(self) -> None:
        if self._draft is not None:
            self._answers.mark = self._draft.focus
            if not self.has_class("-whole-prompt"):
                self._answers.reveal(self._draft.focus)

    def _lay_out(self) -> None:
        """Give the prompt the rows that it needs, up to a quarter of the screen."""
        width, height = self.app.size
        self.set_class(width < MIN_COLUMNS or height < MIN_ROWS, "-small")
        self.set_class(width >= WIDE_COLUMNS, "-wide")
        if self.has_class("-whole-prompt") or width >= WIDE_COLUMNS:
            self._prompt.styles.height = "1fr"
        else:
            self._prompt.styles.height = max(2, min(self._prompt.rows_wanted(width), height // 4))
        text = f"Make it {MIN_COLUMNS}×{MIN_ROWS}: {width}×{height} is too small. Nothing is lost."
        self._small.show([Segment(text, BOLD)])

    def _say(self, text: str) -> None:
        self._said = text

    def _explain(self, error: UserError) -> None:
        self._say(" ".join(part for part in (f"{error.what}.", error.fix) if part))

    def _draw(self) -> None:
        """Show what has changed; nothing while the next item is about to come."""
        if self._hurrying:
            return
        self._status.show(*status_line(self._session.labeler, self._progress, self._draft))
        if self._asking is None:
            if self._trouble is not None:
                self._message.show(trouble_line(self._trouble, warned=self._warned))
            else:
                self._message.show(message_line(self._said, self._draft))
        self._ranks.show(rank_line(self._draft))
        self._keys.show(hints(self._draft))
        self._prompt.redraw()
        self._answers.redraw()

    def _prompt_heading(self, number: int, width: int) -> Strip:
        title = "Nothing to do" if self._nothing is not None else PANES[number]
        at_top = number == self._prompt.first_visible
        right = prompt_hint(self._prompt.rows_below, whole=self.has_class("-whole-prompt")) if at_top else ""
        return heading([Segment("──", DIM), Segment(f" {title} ", BOLD)], right, width)

    def _answer_heading(self, number: int, width: int) -> Strip:
        draft = self._draft
        if draft is None or number >= draft.size:
            return heading([], "", width)
        below = self._answers.rows_below
        right = f" {below} rows below " if number == self._answers.first_visible and below else ""
        return heading(answer_title(draft, number), right, width)

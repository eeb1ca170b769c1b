"""The labeler's screen: one prompt, its answers, and what has been said of them."""

from collections.abc import Callable

from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message
from textual.strip import Strip

from labeling.analysis.dispute_summary import dispute_summary
from labeling.sanitize import sanitize_line
from labeling.sessions.labeling_session import LabelerProgress, LabelingSession
from labeling.sessions.session import MAX_REASON_CHARACTERS, new_submission
from labeling.store.assignment import NoTask
from labeling.store.judgements import MAX_NOTE_CHARACTERS
from labeling.terminal import keys
from labeling.terminal.asking import AskingScreen
from labeling.terminal.background import Arrived, BackgroundSession, Lost, Refused, Report, Stored
from labeling.terminal.bars import Bar, Question
from labeling.terminal.draft import Draft
from labeling.terminal.lines import (
    answer_title,
    greeting,
    heading,
    hints,
    message_line,
    prompt_hint,
    rank_line,
    status_line,
    trouble_line,
)
from labeling.terminal.pane import TextPane
from labeling.terminal.style import (
    BOLD,
    DIM,
    RANKING_CSS,
)
from rlhf.data.records import FAILED, Rank
from rlhf.errors import UserError
from rlhf.model.chat import prompt_text

MIN_COLUMNS, MIN_ROWS = 40, 12
PATIENCE_SECONDS = 0.15
"""How long the next item may take to come before the screen says that it is on its way."""
PANES = ("Prompt", "Labels")
"""What stands in the pane next to the answers; labels only for whoever decides on them."""
WIDE_COLUMNS = 120
"""From here on the prompt stands next to the answers."""


class RankingScreen(AskingScreen, inherit_bindings=False):
    """Takes keys at once and gives the background session what is to be stored."""

    CSS = RANKING_CSS
    AUTO_FOCUS = ""
    BINDINGS = [*keys.bindings()]

    class Reported(Message):
        """The background session reports something."""

        def __init__(self, report: Report) -> None:
            super().__init__()
            self.report = report

    def __init__(self, session: LabelingSession, background: BackgroundSession) -> None:
        super().__init__()
        self._session, self._background = session, background
        self._draft: Draft | None = None
        self._progress: LabelerProgress | None = None
        self._nothing: NoTask | None = None
        self._scoring = self._warned = self._hurrying = False
        self._trouble: Refused | None = None
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

    def on_mount(self) -> None:
        self._prompt, self._answers = (
            self.query_one("#prompt", TextPane),
            self.query_one("#answers", TextPane),
        )
        self._status, self._message, self._ranks, self._keys = (
            self.query_one(f"#{name}", Bar) for name in ("status", "message", "ranks", "keys")
        )
        self._small, self._question = self.query_one("#small", Bar), self.query_one(Question)
        self._say("Fetching the first item …")
        self._background.next()

    # What the background session reports.

    def on_ranking_screen_reported(self, message: Reported) -> None:
        report = message.report
        match report:
            case Arrived():
                self._arrived(report)
            case Stored(kind="save") if self._trouble is None:
                return  # as it should be: there is nothing to draw
            case Stored():
                self._trouble = None
            case Lost():
                if self._draft is not None and self._draft.task.item_id == report.item_id:
                    self._say("This item is open elsewhere now, or its time ran out; submit it all the same")
            case Refused():
                self._hurrying = False
                self._refused(report)
        self._draw()

    def _arrived(self, arrived: Arrived) -> None:
        self._trouble, self._progress, self._said = None, arrived.progress, ""
        self._hurrying = False
        self._close_question()
        self.remove_class("-whole-prompt")
        self._nothing = arrived.task if isinstance(arrived.task, NoTask) else None
        if isinstance(arrived.task, NoTask):
            self._draft = None
            self._prompt.show((arrived.task.message,))
            self._answers.show(("Enter looks again, u takes the last submission back, q quits.",))
        else:
            self._draft = Draft(arrived.task, self._session.rules)
            self._prompt.show((prompt_text(arrived.task.prompt), *dispute_summary(arrived.task)))
            self._answers.show(arrived.task.completions)
            self._say(greeting(arrived, self._draft))
        self._lay_out()
        self._focus_moved()

    def _refused(self, refused: Refused) -> None:
        if refused.pause is not None:
            self._trouble = refused
        else:
            self._trouble = None
            self._explain(refused.error)

    # Keys.

    def action_key(self, name: str, *arguments: int) -> None:
        """A key with a meaning: a sign of life, and what was said after the last one is gone."""
        if self._draft is not None:
            self._session.touch(self._draft.task)
        self._warned = self._warned and name == "leave"
        self._scoring = self._scoring and name == "digit"
        self._said = ""
        getattr(self, f"action_{name}")(*arguments)
        self._draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While a question is open it has the keys; without an item few of them mean anything."""
        name = parameters[0] if action == "key" else action
        if self._asking is not None:
            return name == "escape"
        if self.has_class("-small"):
            return name == "leave"
        if self._draft is None:
            return name in ("submit", "undo", "leave", "help", "rows", "page")
        return True

    def action_digit(self, digit: int) -> None:
        if self._scoring:
            self._change(lambda draft: draft.score(digit))
            self._scoring = False
        else:
            self._rank(digit)

    def action_fail(self) -> None:
        self._rank(FAILED)

    def _rank(self, rank: Rank) -> None:
        self._change(lambda draft: draft.rank(rank))
        draft = self._draft
        if draft is not None and draft.judgement.complete and not self._said:
            self._say("All ranked: Enter submits")

    def action_clear(self) -> None:
        self._change(lambda draft: draft.clear())

    def action_score(self) -> None:
        if not self._session.rules.quality_scores:
            self._say("This project has no quality scores")
        else:
            self._scoring = True
            assert self._draft is not None
            self._say(f"Quality of answer {self._draft.focus + 1}: 1 to 7 (7 is best)")

    def action_answer(self, step: int) -> None:
        assert self._draft is not None
        self._draft.focus = (self._draft.focus + step) % self._draft.size
        self._focus_moved()

    def action_end(self, which: int) -> None:
        assert self._draft is not None
        self._draft.focus = which % self._draft.size
        self._focus_moved()

    def action_rows(self, rows: int) -> None:
        self._scrolling().scroll_rows(rows)

    def action_page(self, direction: int) -> None:
        self._scrolling().page(direction)

    def action_prompt(self) -> None:
        self.toggle_class("-whole-prompt")
        self._lay_out()

    def action_submit(self) -> None:
        if self._trouble is not None:
            self._background.hurry()
        elif self._draft is None:
            if self._nothing is not None:
                self._say("Looking …")
                self._background.next()
        else:
            draft = self._draft
            try:
                final = draft.final()
            except UserError as error:
                self._explain(error)
                self._focus_moved()
                return
            self._background.submit(draft.task, final, new_submission())
            self._wait_for_next()

    def action_undo(self) -> None:
        draft = self._draft
        if draft is not None and draft.back():
            self._background.save(draft.task, draft.judgement)
            self._focus_moved()
            self._say("Undone")
        elif draft is not None or self._nothing is not None:
            self._background.undo()

    def action_skip(self) -> None:
        self._ask("Skip, because: ", self._skip, limit=MAX_REASON_CHARACTERS)

    def _skip(self, reason: str) -> None:
        assert self._draft is not None
        self._background.skip(self._draft.task, reason)
        self._wait_for_next()

    def _wait_for_next(self) -> None:
        """Take no keys until the next item is in sight; leave this one there while nobody notices."""
        self._draft, self._hurrying = None, True
        self._say("Storing …")
        self.set_timer(PATIENCE_SECONDS, self._explain_waiting)

    def _explain_waiting(self) -> None:
        if self._hurrying:
            self._hurrying = False
            self._draw()

    def action_flag(self) -> None:
        self._ask("Wrong with this item: ", self._flag, limit=MAX_REASON_CHARACTERS)

    def _flag(self, reason: str) -> None:
        assert self._draft is not None
        self._background.flag(self._draft.task, reason)
        self._say("Flagged. Rank it all the same, or skip it")

    def action_note(self) -> None:
        assert self._draft is not None
        self._draft.remember()
        before = sanitize_line(self._draft.judgement.note)
        self._ask("Note: ", self._note, typed=self._note, before=before, limit=MAX_NOTE_CHARACTERS)

    def _note(self, text: str) -> None:
        draft = self._draft
        if draft is not None and text != sanitize_line(draft.judgement.note):
            draft.note(text)
            self._background.save(draft.task, draft.judgement)

    def action_help(self) -> None:
        from labeling.terminal.instructions import InstructionsScreen  # the first item need not wait for it

        self.app.push_screen(InstructionsScreen(self._session.project))

    def action_leave(self) -> None:
        if self._trouble is not None and not self._warned:
            self._warned = True
        else:
            self.app.exit()

    # Drawing.

    def on_resize(self) -> None:
        self._lay_out()
        self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        self._focus_moved()
        self._draw()

    def on_text_pane_scrolled(self, message: TextPane.Scrolled) -> None:
        """The focus follows the eye: keys are never about an answer out of sight."""
        draft, pane = self._draft, message.pane
        if pane is self._answers and draft is not None and not pane.shows(draft.focus):
            draft.focus = pane.first_visible
        self._draw()

    def _scrolling(self) -> TextPane:
        return self._prompt if self.has_class("-whole-prompt") or self._draft is None else self._answers

    def _change(self, change: Callable[[Draft], None]) -> None:
        draft = self._draft
        assert draft is not None
        before = draft.judgement
        try:
            change(draft)
        except UserError as error:
            self._explain(error)
        if draft.judgement != before:
            self._background.save(draft.task, draft.judgement)
        self._focus_moved()

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

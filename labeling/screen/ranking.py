"""The labeler's screen: one prompt, its answers, and what has been said of them."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message
from textual.screen import Screen
from textual.strip import Strip
from textual.widgets import Input

from labeling.assignment import NoTask
from labeling.harmless import harmless_line
from labeling.judgements import MAX_NOTE_CHARACTERS
from labeling.screen import keys
from labeling.screen.ballot import Ballot, rank_sign
from labeling.screen.bars import BAD, BOLD, DIM, FOCUS, GOOD, OPEN, PLAIN, TROUBLE, Bar, Question, fill
from labeling.screen.desk import Arrived, Desk, Lost, Refused, Report, Stored
from labeling.screen.pane import TextPane
from labeling.session import MAX_REASON_CHARACTERS, new_submission
from labeling.testimony import testimony, votes
from labeling.workplace import Standing, Workplace
from rlhf.chat import prompt_text
from rlhf.errors import UserError
from rlhf.records import FAILED, Rank

MIN_COLUMNS, MIN_ROWS = 40, 12
PANES = ("Prompt", "Labels")
"""What stands in the pane beside the answers; labels only for whoever decides on them."""
WIDE_COLUMNS = 120
"""From here on the prompt stands beside the answers."""


@dataclass(frozen=True)
class Asking:
    """A question that is open in the screen's last rows."""

    answered: Callable[[str], None]
    typed: Callable[[str], None] | None = None
    """Told of every change."""
    before: str = ""
    """What was there, to go back to."""


class RankingScreen(Screen[None], inherit_bindings=False):
    """Takes keys at once and gives the desk what is to be stored."""

    CSS = """
    RankingScreen { layout: vertical; }
    Bar, Question { height: 1; }
    Question { border: none; padding: 0; background: ansi_default; color: ansi_default; display: none; }
    Question:focus { border: none; background: ansi_default; background-tint: ansi_default 0%; }
    #body { height: 1fr; layout: vertical; }
    #prompt { height: 6; }
    #answers { height: 1fr; }
    #question-row { layout: horizontal; height: 1; }
    #small { display: none; height: 1fr; }
    RankingScreen.-wide #body { layout: horizontal; }
    RankingScreen.-wide #prompt { width: 36%; height: 1fr; margin: 0 1 0 0; }
    RankingScreen.-wide #answers { width: 1fr; }
    RankingScreen.-whole-prompt #prompt { height: 1fr; width: 1fr; }
    RankingScreen.-whole-prompt #answers { display: none; }
    RankingScreen.-small Bar, RankingScreen.-small #body, RankingScreen.-small Question { display: none; }
    RankingScreen.-small #small { display: block; }
    """
    AUTO_FOCUS = ""
    BINDINGS = [*keys.bindings()]

    class Reported(Message):
        """The desk says something."""

        def __init__(self, report: Report) -> None:
            super().__init__()
            self.report = report

    def __init__(self, session: Workplace, desk: Desk) -> None:
        super().__init__()
        self._session, self._desk = session, desk
        self._ballot: Ballot | None = None
        self._standing: Standing | None = None
        self._nothing: NoTask | None = None
        self._asking: Asking | None = None
        self._scoring = self._warned = False
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
        self._message, self._question = self.query_one("#message", Bar), self.query_one(Question)
        self._say("Fetching the first item …")
        self._desk.next()

    # What the desk reports.

    def on_ranking_screen_reported(self, message: Reported) -> None:
        report = message.report
        match report:
            case Arrived():
                self._arrived(report)
            case Stored(kind="save") if self._trouble is None:
                return  # as it should be: there is nothing to draw
            case Stored():
                self._trouble = None
                if report.receipt is not None and report.receipt.late:
                    self._say("That was late, and counts all the same")
            case Lost():
                if self._ballot is not None and self._ballot.task.item_id == report.item_id:
                    self._say("This item is open elsewhere now, or its time ran out; submit it all the same")
            case Refused():
                self._refused(report)
        self._draw()

    def _arrived(self, arrived: Arrived) -> None:
        self._trouble, self._standing, self._said = None, arrived.standing, ""
        self._close_question()
        self.remove_class("-whole-prompt")
        self._nothing = arrived.task if isinstance(arrived.task, NoTask) else None
        if isinstance(arrived.task, NoTask):
            self._ballot = None
            self._prompt.show((arrived.task.message,))
            self._answers.show(("Enter looks again, u takes the last submission back, q quits.",))
        else:
            self._ballot = Ballot(arrived.task, self._session.policy)
            self._prompt.show((prompt_text(arrived.task.prompt), *testimony(arrived.task)))
            self._answers.show(arrived.task.completions)
            if arrived.undone:
                self._say("Taken back; this is what you had said")
            elif self._ballot.judgement != type(self._ballot.judgement).empty(self._ballot.size):
                self._say("You were here before: this is what you had entered")
            elif not arrived.standing.submitted:
                self._say("Welcome. ? shows the instructions and all keys")
        self._lay_out()
        self._focus_moved()

    def _refused(self, refused: Refused) -> None:
        if refused.pause is not None:
            self._trouble = refused
        else:
            self._trouble = None
            self._complain(refused.error)

    # Keys.

    def action_key(self, name: str, *arguments: int) -> None:
        """A key with a meaning: a sign of life, and what was said after the last one is gone."""
        if self._ballot is not None:
            self._session.touch(self._ballot.task)
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
        if self._ballot is None:
            return name in ("submit", "undo", "leave", "help", "rows", "page")
        return True

    def action_digit(self, digit: int) -> None:
        if self._scoring:
            self._change(lambda ballot: ballot.score(digit))
            self._scoring = False
        else:
            self._rank(digit)

    def action_fail(self) -> None:
        self._rank(FAILED)

    def _rank(self, rank: Rank) -> None:
        self._change(lambda ballot: ballot.rank(rank))
        ballot = self._ballot
        if ballot is not None and ballot.judgement.complete and not self._said:
            self._say("All ranked: Enter submits")

    def action_clear(self) -> None:
        self._change(lambda ballot: ballot.clear())

    def action_score(self) -> None:
        if not self._session.policy.quality_scores:
            self._say("This project has no quality scores")
        else:
            self._scoring = True
            assert self._ballot is not None
            self._say(f"Quality of answer {self._ballot.focus + 1}: 1 to 7 (7 is best)")

    def action_answer(self, step: int) -> None:
        assert self._ballot is not None
        self._ballot.focus = (self._ballot.focus + step) % self._ballot.size
        self._focus_moved()

    def action_end(self, which: int) -> None:
        assert self._ballot is not None
        self._ballot.focus = which % self._ballot.size
        self._focus_moved()

    def action_rows(self, rows: int) -> None:
        self._scrolling().scroll_rows(rows)

    def action_page(self, direction: int) -> None:
        self._scrolling().page(direction)

    def action_prompt(self) -> None:
        self.toggle_class("-whole-prompt")
        self._lay_out()
        self._draw()

    def action_submit(self) -> None:
        if self._trouble is not None:
            self._desk.hurry()
        elif self._ballot is None:
            if self._nothing is not None:
                self._say("Looking …")
                self._desk.next()
        else:
            ballot = self._ballot
            try:
                final = ballot.final()
            except UserError as error:
                self._complain(error)
                self._focus_moved()
                return
            self._ballot = None  # keys that follow wait for the next item to be seen
            self._desk.submit(ballot.task, final, new_submission())
            self._say("Storing …")
        self._draw()

    def action_undo(self) -> None:
        ballot = self._ballot
        if ballot is not None and ballot.back():
            self._desk.save(ballot.task, ballot.judgement)
            self._focus_moved()
            self._say("Undone")
        elif ballot is not None or self._nothing is not None:
            self._desk.undo()
        self._draw()

    def action_skip(self) -> None:
        self._ask("Skip, because: ", self._skip, limit=MAX_REASON_CHARACTERS)

    def _skip(self, reason: str) -> None:
        assert self._ballot is not None
        self._desk.skip(self._ballot.task, reason)
        self._ballot = None
        self._say("Storing …")

    def action_flag(self) -> None:
        self._ask("Wrong with this item: ", self._flag, limit=MAX_REASON_CHARACTERS)

    def _flag(self, reason: str) -> None:
        assert self._ballot is not None
        self._desk.flag(self._ballot.task, reason)
        self._say("Flagged. Rank it all the same, or skip it")

    def action_note(self) -> None:
        assert self._ballot is not None
        self._ballot.remember()
        before = harmless_line(self._ballot.judgement.note)
        self._ask("Note: ", self._note, typed=self._note, before=before, limit=MAX_NOTE_CHARACTERS)

    def _note(self, text: str) -> None:
        ballot = self._ballot
        if ballot is not None and text != harmless_line(ballot.judgement.note):
            ballot.note(text)
            self._desk.save(ballot.task, ballot.judgement)

    def action_help(self) -> None:
        from labeling.screen.instructions import InstructionsScreen  # the first item need not wait for it

        self.app.push_screen(InstructionsScreen(self._session.project))

    def action_leave(self) -> None:
        if self._trouble is not None and not self._warned:
            self._warned = True
            self._draw()
        else:
            self.app.exit()

    def action_escape(self) -> None:
        if self._asking is not None:
            asking = self._asking
            if asking.typed is not None:
                asking.typed(asking.before)
            self._close_question()
            self._draw()

    # Questions.

    def _ask(
        self,
        label: str,
        answered: Callable[[str], None],
        *,
        limit: int,
        typed: Callable[[str], None] | None = None,
        before: str = "",
    ) -> None:
        self._asking = Asking(answered, typed, before)
        question = self._question
        question.max_length = limit
        with question.prevent(Input.Changed):
            question.value = before
        question.cursor_position = len(before)
        question.styles.display = "block"
        self.set_focus(question)  # at once
        self._message.show([Segment(label, BOLD), Segment("(Enter keeps it, Esc leaves it)", DIM)])
        self._lay_out()

    def on_input_changed(self, event: Input.Changed) -> None:
        if self._asking is not None and self._asking.typed is not None:
            self._asking.typed(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        asking, text = self._asking, event.value.strip()
        if asking is None:
            return
        if not text and asking.typed is None:
            self._message.show([Segment("A few words, please ", OPEN), Segment("(Esc leaves it)", DIM)])
            return
        self._close_question()
        asking.answered(text)
        self._draw()

    def _close_question(self) -> None:
        if self._asking is not None:
            self._asking = None
            self._question.styles.display = "none"
            self.set_focus(None)
            self._lay_out()

    # Drawing.

    def on_resize(self) -> None:
        self._lay_out()
        self.call_after_refresh(self._focus_moved)

    def on_text_pane_scrolled(self, message: TextPane.Scrolled) -> None:
        """The focus follows the eye: keys are never about an answer out of sight."""
        ballot, pane = self._ballot, message.pane
        if pane is self._answers and ballot is not None and not pane.shows(ballot.focus):
            ballot.focus = pane.first_visible
        self._draw()

    def _scrolling(self) -> TextPane:
        return self._prompt if self.has_class("-whole-prompt") or self._ballot is None else self._answers

    def _change(self, change: Callable[[Ballot], None]) -> None:
        ballot = self._ballot
        assert ballot is not None
        before = ballot.judgement
        try:
            change(ballot)
        except UserError as error:
            self._complain(error)
        if ballot.judgement != before:
            self._desk.save(ballot.task, ballot.judgement)
        self._focus_moved()

    def _focus_moved(self) -> None:
        if self._ballot is not None:
            self._answers.mark = self._ballot.focus
            if not self.has_class("-whole-prompt"):
                self._answers.reveal(self._ballot.focus)
        self._draw()

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
        self.query_one("#small", Bar).show([Segment(text, BOLD)])

    def _say(self, text: str) -> None:
        self._said = text

    def _complain(self, error: UserError) -> None:
        self._say(" ".join(part for part in (f"{error.what}.", error.fix) if part))

    def _draw(self) -> None:
        self.query_one("#status", Bar).show(*self._status())
        if self._asking is None:
            self._message.show(self._message_line())
        self.query_one("#ranks", Bar).show(self._rank_line())
        self.query_one("#keys", Bar).show([Segment(self._hints(), DIM)])
        self._prompt.refresh()
        self._answers.refresh()

    def _status(self) -> tuple[list[Segment], str]:
        standing, name = self._standing, harmless_line(self._session.labeler)
        if standing is None:
            return [Segment(f" {name}", BOLD)], ""
        pace = f", {standing.pace}" if standing.pace else ""
        item = f" · item {self._ballot.task.item_id}" if self._ballot is not None else ""
        left = [Segment(f" {name}", BOLD), Segment(f"{item} · {standing.submitted:,} done{pace}", PLAIN)]
        return left, f"{standing.progress} "

    def _message_line(self) -> list[Segment]:
        if self._trouble is not None:
            what = harmless_line(self._trouble.error.what)
            if self._warned:
                return [Segment(f" Not stored: {what}. q again quits all the same ", TROUBLE)]
            return [Segment(f" Not stored yet, trying again: {what}. Enter tries now ", TROUBLE)]
        if self._said:
            return [Segment(f" {harmless_line(self._said)}", BOLD)]
        if self._ballot is not None and self._ballot.judgement.note:
            return [Segment(" Note: ", BOLD), Segment(harmless_line(self._ballot.judgement.note))]
        return []

    def _rank_line(self) -> list[Segment]:
        ballot = self._ballot
        if ballot is None:
            return []
        found = [Segment(" ", PLAIN)]
        for number, rank in enumerate(ballot.judgement.ranks):
            style = FOCUS if number == ballot.focus else _style(rank)
            score = ballot.judgement.scores[number] if ballot.judgement.scores else None
            quality = "" if score is None else f"/{score}"
            found += [Segment(f" {number + 1}:{rank_sign(rank)}{quality} ", style), Segment(" ", PLAIN)]
        return found

    def _hints(self) -> str:
        if self._ballot is None:
            return " Enter look again   u undo   ? help   q quit"
        top = self._ballot.size
        return f" 1-{top} rank  f failed  ← → answer  ↑ ↓ scroll  u undo  Enter submit  ? help"

    def _prompt_heading(self, number: int, width: int) -> Strip:
        more = self._prompt.rows_below
        whole = self.has_class("-whole-prompt")
        right = " p: back to the answers " if whole else f" {more} more rows: p " if more else ""
        title = " Nothing to do " if self._nothing is not None else f" {PANES[number]} "
        return Strip(fill([Segment("──", DIM), Segment(title, BOLD)], right, width, "─"))

    def _answer_heading(self, number: int, width: int) -> Strip:
        ballot = self._ballot
        if ballot is None or number >= ballot.size:
            return Strip(fill([], "", width, "─"))
        rank, focused = ballot.judgement.ranks[number], number == ballot.focus
        score = ballot.judgement.scores[number] if ballot.judgement.scores else None
        words = "no rank" if rank is None else "failed" if rank == FAILED else rank_sign(rank)
        said = f" {words}{'' if score is None else f', quality {score}'} "
        title = f" Answer {number + 1} "
        left = [Segment("▶ " if focused else "──", BOLD if focused else DIM)]
        left += [Segment(title, FOCUS if focused else BOLD), Segment(said, _style(rank))]
        left += [Segment(votes(ballot.task, number), PLAIN)]
        below = self._answers.rows_below
        right = f" {below} rows below " if number == self._answers.first_visible and below else ""
        return Strip(fill(left, right, width, "─"))


def _style(rank: Rank | None) -> Style:
    return OPEN if rank is None else BAD if rank == FAILED else GOOD

"""The labeler's screen: what keys do, and what is stored of them."""

from collections.abc import Callable

from textual import events
from textual.message import Message

from labeling.analysis.dispute_summary import dispute_summary
from labeling.sanitize import sanitize_line
from labeling.sessions.labeling_session import LabelingSession
from labeling.sessions.session import MAX_REASON_CHARACTERS, new_submission
from labeling.store.assignment import NoTask
from labeling.store.judgements import MAX_NOTE_CHARACTERS
from labeling.terminal import keys
from labeling.terminal.ahead import ANY_TIME, TypedAhead
from labeling.terminal.background import Arrived, BackgroundSession, Lost, Refused, Report, Stored
from labeling.terminal.draft import Draft
from labeling.terminal.item_screen import ItemScreen
from labeling.terminal.lines import after_rank, greeting
from labeling.terminal.style import RANKING_CSS
from rlhf.data.records import FAILED
from rlhf.errors import UserError
from rlhf.model.chat import prompt_text

PATIENCE_SECONDS = 0.15
"""How long the next item may take to come before the screen says that it is on its way."""
ON_ANSWERS = ("digit", "fail", "clear", "score", "submit")
"""Keys that are about answers, which must be in sight for them."""


class RankingScreen(ItemScreen, inherit_bindings=False):
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
        super().__init__(session)
        self._background = background
        self._set_aside: Draft | None = None
        """The item that was there when the one before was asked back."""
        self._ahead = TypedAhead()

    def on_mount(self) -> None:
        self._find_parts()
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
        self._hurrying = self._ahead.waiting = False
        self._set_aside = None
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
            if refused.kind == "undo":
                self._draft, self._set_aside = self._set_aside, None
            if refused.kind in ("undo", "next"):  # after any other an item comes, or is there
                self._ahead.waiting = False

    # Keys.

    async def action_key(self, name: str, *arguments: int) -> None:
        """A key with a meaning: a sign of life, and what was said after the last one is gone."""
        if await self._ends_question(name):
            self._draw()
            return
        if self._ahead.takes(name):
            if not self._ahead.waiting:
                self._say("Typed before the item was in sight, so not taken")
            self._draw()
            return
        if self._draft is not None:
            self._session.touch(self._draft.task)
        self._warned = self._warned and name == "leave"
        self._said = ""
        if not (self._ends_scoring(name) or self._is_out_of_sight(name)):
            getattr(self, f"action_{name}")(*arguments)
        self._draw()

    def _is_out_of_sight(self, name: str) -> bool:
        """Whether the key is about answers that the whole prompt stands before."""
        tries_again = name == "submit" and self._trouble is not None
        if (
            name not in ON_ANSWERS
            or tries_again
            or self._draft is None
            or not self.has_class("-whole-prompt")
        ):
            return False
        self._say("The answers are out of sight: p goes back to them")
        return True

    def _ends_scoring(self, name: str) -> bool:
        """Where a score is asked for, a key other than a digit ends that; some do nothing else."""
        draft = self._draft
        if draft is None or not draft.is_scoring or name in ("digit", "score"):
            return False
        draft.leave_score()
        self._focus_moved()
        if name not in ("clear", "undo", "escape", "submit"):
            return False
        self._say("No score given")
        return True

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While a question is open it has the keys; without an item few of them mean anything."""
        name = parameters[0] if action == "key" else action
        if self._asking is not None:
            return name in ("submit", "escape")
        if self.has_class("-small"):
            return name == "leave"
        if self._draft is None and not self._ahead.waiting:
            return name in ("undo", *ANY_TIME)
        return True

    def on_key(self, event: events.Key) -> None:
        """A key that means nothing is said, so that nobody takes it for a rank that was given."""
        if event.is_printable and self._asking is None and self._draft is not None:
            self._say(f"{event.character} means nothing here; ? lists the keys")
            self._draw()

    def action_digit(self, digit: int) -> None:
        if digit == 0 and self._draft is not None and not self._draft.is_scoring:
            self.action_clear()
        else:
            self._change(lambda draft: draft.digit(digit))
            self._say_what_follows()

    def action_fail(self) -> None:
        self._change(lambda draft: draft.rank(FAILED))
        self._say_what_follows()

    def _say_what_follows(self) -> None:
        if self._draft is not None and not self._said:
            self._say(after_rank(self._draft))

    def action_clear(self) -> None:
        assert self._draft is not None
        before = self._draft.judgement
        self._change(lambda draft: draft.clear())
        if self._draft.judgement == before:
            self._say(f"Answer {self._draft.focus + 1} has no rank to take away; u undoes the last key")

    def action_score(self) -> None:
        self._change(lambda draft: draft.ask_score())
        if self._draft is not None and self._draft.is_scoring:
            self._say(f"Quality of answer {self._draft.focus + 1}: 1 to 7 (7 is best)")

    def action_escape(self) -> None:
        """Nothing is open that could be left; what was said is gone."""

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
        self._focus_follows()

    def action_page(self, direction: int) -> None:
        self._scrolling().page(direction)
        self._focus_follows()

    def action_prompt(self) -> None:
        self.toggle_class("-whole-prompt")
        self._lay_out()
        self.call_after_refresh(self._resized)  # the focus may have moved while the answers were out of sight

    def action_submit(self) -> None:
        if self._trouble is not None:
            self._background.hurry()
        elif self._draft is None:
            if self._nothing is not None and not self._ahead.waiting:
                self._say("Looking …")
                self._ahead.waiting = True
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
        else:
            self._set_aside = draft
            self._background.undo()
            self._wait_for_next("Taking back …")

    def action_skip(self) -> None:
        self._ask("Skip, because: ", self._skip, limit=MAX_REASON_CHARACTERS)

    def _skip(self, reason: str) -> None:
        assert self._draft is not None
        self._background.skip(self._draft.task, reason)
        self._wait_for_next()

    def _wait_for_next(self, said: str = "Storing …") -> None:
        """Take no keys until the next item is in sight; leave this one there while nobody notices."""
        self._draft, self._hurrying, self._ahead.waiting = None, True, True
        self._say(said)
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

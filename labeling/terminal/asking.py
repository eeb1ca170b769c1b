"""A screen that asks for a few words in its last rows."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from rich.segment import Segment
from textual.screen import Screen
from textual.widgets import Input

from labeling.terminal.bars import Bar, Question
from labeling.terminal.style import BOLD, DIM, OPEN


@dataclass(frozen=True)
class OpenQuestion:
    """What becomes of the answer to a question."""

    answered: Callable[[str], None]
    typed: Callable[[str], None] | None = None
    """Told of every change."""
    before: str = ""
    """What was there, to go back to."""


class AskingScreen(Screen[None], inherit_bindings=False):
    """Has one question open at a time, or none."""

    _question: Question
    _message: Bar
    """Says what is asked."""

    def __init__(self) -> None:
        super().__init__()
        self._asking: OpenQuestion | None = None

    @abstractmethod
    def _lay_out(self) -> None:
        """Make room for the question, or take it back."""

    @abstractmethod
    def _draw(self) -> None:
        """Show what has changed."""

    async def _ends_question(self, name: str) -> bool:
        """Whether the key ends the question that is open: Enter keeps what was typed, Escape leaves it.

        What was typed before this key is waited for, and only then is the next key looked at: none may be
        lost in the question, or be taken for a command of the screen.
        """
        asking = self._asking
        if asking is None or name not in ("submit", "escape"):
            return False
        typed = asyncio.Event()
        if self._question.call_later(typed.set):
            await typed.wait()
        if self._asking is not asking:  # an item came meanwhile
            return True
        if name == "submit":
            self._answered(asking, self._question.value.strip())
        else:
            if asking.typed is not None:
                asking.typed(asking.before)
            self._close_question()
        return True

    def _ask(
        self,
        label: str,
        answered: Callable[[str], None],
        *,
        limit: int,
        typed: Callable[[str], None] | None = None,
        before: str = "",
    ) -> None:
        self._asking = OpenQuestion(answered, typed, before)
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
        is_latest = event.value == self._question.value  # not of the question before
        if self._asking is not None and self._asking.typed is not None and is_latest:
            self._asking.typed(event.value)

    def _answered(self, asking: OpenQuestion, text: str) -> None:
        if not text and asking.typed is None:
            self._message.show([Segment("A few words, please ", OPEN), Segment("(Esc leaves it)", DIM)])
            return
        self._close_question()
        asking.answered(text)

    def _close_question(self) -> None:
        if self._asking is not None:
            self._asking = None
            self._question.styles.display = "none"
            self.set_focus(None)
            self._lay_out()

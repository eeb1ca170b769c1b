"""What labelers read: the project's instructions, and the keys."""

from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Markdown

from labeling.sanitize import sanitize
from labeling.store.project import Project
from labeling.terminal.bars import Bar
from labeling.terminal.keys import key_help
from labeling.terminal.style import (
    DIM,
    INSTRUCTIONS_CSS,
)


class InstructionsScreen(ModalScreen[None], inherit_bindings=False):
    """Shown over the item, which waits."""

    CSS = INSTRUCTIONS_CSS
    AUTO_FOCUS = ""
    BINDINGS = [
        ("escape,question_mark,q,enter", "dismiss", ""),
        ("down,j", "scroll('down')", ""),
        ("up,k", "scroll('up')", ""),
        ("space,pagedown", "scroll('page_down')", ""),
        ("b,pageup", "scroll('page_up')", ""),
        ("home", "scroll('home')", ""),
        ("end", "scroll('end')", ""),
    ]

    def __init__(self, project: Project) -> None:
        super().__init__()
        self._text = f"{sanitize(project.instructions)}\n\n{key_help(project.rules)}"

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False) as self._scroll:
            yield Markdown(self._text, open_links=False)
        yield Bar(id="instructions-keys")

    def on_mount(self) -> None:
        hint = " ↓ ↑ Space: scroll    ?, Esc: back to the item"
        self.query_one(Bar).show([Segment(hint, DIM)])

    def action_scroll(self, how: str) -> None:
        getattr(self._scroll, f"scroll_{how}")(animate=False)

    async def action_dismiss(self, result: None = None) -> None:
        self.dismiss(result)

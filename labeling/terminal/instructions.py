"""What labelers read: the project's instructions, and the keys."""

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding
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
    BINDINGS = [  # with priority: the key after the one that closes it belongs to the item again
        Binding("escape,question_mark,q,enter", "dismiss", priority=True),
        Binding("down,j", "scroll('down')", priority=True),
        Binding("up,k", "scroll('up')", priority=True),
        Binding("space,pagedown", "scroll('page_down')", priority=True),
        Binding("b,pageup", "scroll('page_up')", priority=True),
        Binding("home", "scroll('home')", priority=True),
        Binding("end", "scroll('end')", priority=True),
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

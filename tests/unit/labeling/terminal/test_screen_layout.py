"""What the labeler's screen shows: long, wide and hostile texts, and terminals of every size."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from labeling.sessions.session import Session
from labeling.store.project import Project
from tests.support.screens import Screen, play

New = Callable[..., Project]


def test_the_instructions_lie_over_the_item(new: New) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("question_mark")
        await screen.until(lambda: "How to rank" in screen.text)
        await screen.press("space", "end")
        await screen.until(lambda: "quit; everything entered is kept" in screen.text)
        await screen.press("1", "escape")
        assert "question 0" in screen.text
        assert "1:·" in screen.text

    with Session(new(), "ann") as session:
        play(session, story)


def test_long_answers_scroll_and_the_focus_follows(new: New) -> None:
    long = tuple("\n".join(f"{name}{n}" for n in range(60)) for name in "abc")

    async def story(screen: Screen) -> None:
        assert "▶  Answer 1" in screen.text
        await screen.press("down", "j")
        assert not any(re.search(r"[abc]1$", row) for row in screen.rows)
        assert any(re.search(r"[abc]3$", row) for row in screen.rows)
        for _ in range(5):
            await screen.press("space")
        assert "▶  Answer 2" in screen.text
        await screen.press("1")
        assert "2:1st" in screen.text
        assert "▶  Answer 3" in screen.text
        await screen.press("b", "pageup", "k", "up")
        assert "▶  Answer 2" in screen.text

    with Session(new(*long), "ann") as session:
        play(session, story)


def test_a_long_prompt_is_shown_whole_on_demand(new: New, tmp_path: Path) -> None:
    from labeling.store.items import Item
    from labeling.store.project import NewItem
    from labeling.store.rules import LabelingRules

    prompt = "\n".join(f"line {n}" for n in range(40))
    with Project.create(tmp_path / "project", LabelingRules()) as project, Session(project, "ann") as session:
        project.add([NewItem(Item(prompt=prompt, completions=("a", "b")))])

        async def story(screen: Screen) -> None:
            assert "line 4" in screen.text
            assert "line 5" not in screen.text
            assert "more rows: p" in screen.text
            await screen.press("p", "space", "space")
            assert "line 39" in screen.text
            await screen.press("p", "1")
            assert "1:1st" in screen.text

        play(session, story)


HOSTILE = "\x1b[2J\x1b]0;owned\x07 [bold red]markup[/] [@click=app.exit]x[/] \x9b31m \u202eabc \0"


def test_hostile_text_is_shown_as_what_it_is(new: New) -> None:
    project = new(HOSTILE, "日本語" * 50, "x" * 1_000_000)

    async def story(screen: Screen) -> None:
        for key in ("right", "right", "right", "space", "c", "a", "enter", "u"):
            await screen.press(key)
            assert not [c for c in screen.text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
        await screen.press("home", "left", "left", "home")
        seen = ""
        for key in ("home", "right", "right"):
            seen += screen.text
            await screen.press(key)
        assert "␛[2J␛]0;owned␇ [bold red]markup[/] [@click=app.exit]x[/] ⟨U+009B⟩31m" in seen
        assert "⟨U+202E⟩abc ␀" in seen

    with Session(project, "ann") as session:
        play(session, story)


@pytest.mark.parametrize("size", [(80, 24), (160, 50), (40, 12), (300, 80)])
def test_no_row_is_wider_than_the_terminal(new: New, size: tuple[int, int]) -> None:
    from rich.cells import cell_len

    project = new(HOSTILE, "日本語" * 500, "x" * 4000, *(f"{n} words " * 400 for n in range(6)))

    async def story(screen: Screen) -> None:
        for key in ("1", "right", "space", "p", "p", "c", "z", "enter"):
            await screen.press(key)
            assert len(screen.rows) == size[1]
            assert max(cell_len(row) for row in screen.rows) <= size[0]
            assert "Answer" in screen.text or "back to the answers" in screen.text

    with Session(project, "ann") as session:
        play(session, story, size=size)


def test_a_terminal_that_is_too_small_says_so_and_takes_no_ranks(new: New) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("2")
        await screen.resize(30, 8)
        assert "Make it 40×12: 30×8 is too sma" in screen.text
        await screen.press("1")
        await screen.resize(160, 50)
        assert "1:2nd" in screen.text
        assert "2:·" in screen.text
        assert any("Prompt" in row and "Answer" in row for row in screen.rows)

    with Session(new(), "ann") as session:
        play(session, story)

"""The labeler's screen in a real terminal: what it takes, what it draws, and what it survives."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labeling.store.assignment import shown_order
from labeling.store.labels import read_labels
from labeling.store.project import Project
from tests.support.screens import small_project
from tests.support.terminals import terminal

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x1b[31mred \x9b31m \0 \u202eabc [bold]x[/] \x1bPq\x1b\\"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with small_project(str(tmp_path / "project"), presence_seconds=1.0) as made:
        yield made


def rank(project: Project, labeler: str = "ann") -> tuple[str, ...]:
    return ("rank", "--project", project.where, "--labeler", labeler)


def gone(process: int) -> bool:
    """Whether a process has ended, also if nobody has asked how."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def until_gone(process: int) -> None:
    deadline = time.monotonic() + 20
    while not gone(process):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_session_from_the_first_key_to_the_last(project: Project) -> None:
    with terminal(*rank(project), env={"COLUMNS": "80", "LINES": "24"}) as screen:
        screen.until_shown("question 0")
        screen.press("2", "1", "f")
        screen.until_shown("All ranked")
        screen.press("Enter")
        screen.until_shown("question 1")
        screen.press("1", "u", "u")
        screen.until_shown("Taken back")
        screen.press("Enter")
        screen.until_shown("question 1")
        screen.resize(30, 8)
        screen.until_shown("Make it 40×12")
        screen.resize(160, 50)
        screen.until(lambda text: any("Prompt" in row and "Answer" in row for row in text.split("\n")))
        screen.press("q")
        screen.until_shown("status=0")
    [label] = read_labels(project)
    assert sorted(map(str, label.ranks)) == ["1", "2", "F"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_terminal_that_goes_away_leaves_the_draft(project: Project, how: signal.Signals) -> None:
    with terminal(*rank(project)) as screen:
        screen.until_shown("question 0")
        screen.press("3", "1")
        screen.until_shown("2:1st")
        process = screen.program()
        screen.kill(how)
        until_gone(process)
    with terminal(*rank(project)) as again:
        shown = again.until_shown("question 0")
        assert "You were here before" in shown
        assert "1:3rd" in shown
        assert "2:1st" in shown


def test_a_program_that_is_killed_leaves_the_draft(project: Project) -> None:
    with terminal(*rank(project)) as screen:
        screen.until_shown("question 0")
        screen.press("2", "F5", "c", "h", "m")
        screen.until_shown("hm")
        time.sleep(0.5)
        os.kill(screen.program(), signal.SIGKILL)
    time.sleep(project.rules.presence_seconds)
    with terminal(*rank(project)) as again:
        shown = again.until_shown("question 0")
        assert "1:2nd" in shown
        again.press("f")
        assert "Note: hm" in again.until_shown("2:F")


def test_hostile_answers_reach_no_terminal_raw(tmp_path: Path) -> None:
    labeler = "a;rm -rf $(x)"
    with (
        small_project(str(tmp_path / "hostile"), HOSTILE, "漢" * 3000, "x" * 1_000_000) as project,
        terminal(*rank(project, labeler)) as screen,
    ):
        [item] = project.items("item")[:1]
        place = shown_order(project.rules.seed, labeler, item.key, 3).index(0)
        screen.until_shown("question 0")
        screen.press(*["Right"] * place)
        screen.until_shown("␛[2J␛]0;owned␇␛[31mred ⟨U+009B⟩31m ␀ ⟨U+202E⟩abc [bold]x[/]")
        assert labeler in screen.text
        screen.press("q")
        screen.until_shown("status=0")


def test_without_colour_none_is_sent(project: Project) -> None:
    colours = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7])(?:;[0-9;]*)?m")
    with terminal(*rank(project), env={"NO_COLOR": "1"}) as screen:
        screen.until_shown("question 0")
        assert not colours.search(screen.raw)
        assert "\x1b[1;7m" in screen.raw or "\x1b[7" in screen.raw  # the focus can still be seen
        screen.press("q")
        screen.until_shown("status=0")
    with terminal(*rank(project, "eve")) as screen:
        screen.until_shown("question")
        assert colours.search(screen.raw)


def test_a_dumb_terminal_and_plain_get_lines(project: Project) -> None:
    for extra, env in (((), {"TERM": "dumb"}), (("--plain",), {})):
        with terminal(*rank(project), *extra, env=env) as screen:
            screen.until_shown("Ranks?")
            screen.press("quit", "Enter")
            screen.until_shown("status=0")


def test_two_terminals_of_one_labeler_get_different_items(project: Project) -> None:
    with terminal(*rank(project)) as one, terminal(*rank(project)) as two:
        first, second = one.until_shown("question"), two.until_shown("question")
        numbers = [re.findall(r"question (\d)", text) for text in (first, second)]
        assert numbers[0] != numbers[1]


def test_a_locked_database_is_waited_for_and_nothing_is_lost(project: Project) -> None:
    with terminal(*rank(project)) as screen:
        screen.until_shown("question 0")
        with project.database.write():  # nobody else can write meanwhile
            screen.press("1", "2", "3", "Enter")
            shown = screen.until_shown("Storing")
            assert "3:3rd" in shown or "question 0" in shown
        screen.until_shown("question 1")
    assert len(read_labels(project)) == 1


def test_keys_land_where_the_screen_shows_it(tmp_path: Path) -> None:
    """In a terminal of 80×24: a ranking typed over another, a score after a rank, a score that is none."""
    texts = ("answer a", "answer b", "answer c", "answer d")
    with (
        small_project(str(tmp_path / "scored"), *texts, quality_scores=True) as project,
        terminal(*rank(project)) as screen,
    ):
        screen.until_shown("question 0")
        screen.press("1", "2", "3", "4")
        screen.until_shown("All ranked")
        screen.press("4", "3", "2", "1")
        screen.until_shown("1:4th   2:3rd   3:2nd   4:1st")
        screen.press("Enter")
        screen.until_shown("question 1")
        time.sleep(0.5)
        screen.press("2", "g", "6", "g", "9", "5", "1")
        screen.until_shown("1:2nd/6   2:1st/5   3:·   4:·")
        screen.press("q")
        screen.until_shown("status=0")
    [label] = read_labels(project)
    assert sorted(label.ranks) == [1, 2, 3, 4]

"""Every key of the labeler's screen, under all rules, and what it shows."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from textual.events import Key

from labeling.retry import Pauses
from labeling.sessions.session import Session
from labeling.store.database import StoreError
from labeling.store.judgements import Judgement, Task
from labeling.store.labels import Label, read_labels
from labeling.store.project import Project
from labeling.store.tables import events
from labeling.terminal.keys import KEYS
from tests.support.screens import Screen, play, small_project

New = Callable[..., Project]


def labels(project: Project) -> list[Label]:
    return read_labels(project)


def in_shown_order(project: Project, label: Label) -> tuple[object, ...]:
    """The ranks as they stood on the screen."""
    with project.database.read() as connection:
        row = connection.execute(select(events).where(events.c.id == label.event_id)).mappings().one()
    shown = [int(number) for number in re.findall(r"\d+", row["shown"])]
    return label.judgement.in_shown_order(shown).ranks


def kinds(project: Project) -> list[str]:
    with project.database.read() as connection:
        return [row.kind for row in connection.execute(select(events.c.kind).order_by(events.c.id))]


def test_ranks_failures_and_submission_by_single_keys(new: New) -> None:
    project = new()

    async def story(screen: Screen) -> None:
        assert "question 0" in screen.text
        await screen.press("2", "f", "1")
        assert "1:2nd" in screen.text
        assert "2:F" in screen.text
        assert "All ranked: Enter submits" in screen.text
        await screen.press("enter")
        assert "question 1" in screen.text
        assert "1 done" in screen.text

    with Session(project, "ann") as session:
        play(session, story)
    [label] = labels(project)
    assert in_shown_order(project, label) == (2, "F", 1)


def test_every_key_is_saved_at_once(new: New) -> None:
    project = new()

    async def story(screen: Screen) -> None:
        for number, key in enumerate(("3", "1"), start=1):
            await screen.press(key)
            assert kinds(project).count("saved") == number

    with Session(project, "ann") as session:
        play(session, story)
    with Session(project, "ann") as again:
        task = again.next()
    assert isinstance(task, Task)
    assert task.draft.ranks == (3, 1, None)


def test_ties_stand_or_are_exchanged_as_the_rules_say(new: New, tmp_path: Path) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("1", "1", "2", "enter")

    with Session(new(), "ann") as session:
        play(session, story)
        [label] = labels(session.project)
        assert in_shown_order(session.project, label) == (1, 1, 3)

    async def exchanging(screen: Screen) -> None:
        await screen.press("1", "1")
        assert "1:·" in screen.text
        await screen.press("3", "2", "enter")

    with (
        small_project(str(tmp_path / "strict"), ties=False) as strict,
        Session(strict, "ann") as session,
    ):
        play(session, exchanging)
        [label] = labels(strict)
        assert in_shown_order(strict, label) == (2, 1, 3)


def test_nothing_is_submitted_before_every_answer_has_a_rank(new: New) -> None:
    project = new()

    async def story(screen: Screen) -> None:
        await screen.press("1", "enter")
        assert "Answer 2 has no rank yet" in screen.text
        await screen.press("4")
        assert "ranks 1 to 3" in screen.text

    with Session(project, "ann") as session:
        play(session, story)
    assert labels(project) == []


def test_clearing_moving_and_going_back(new: New) -> None:
    with Session(new(), "ann") as session:

        async def story(screen: Screen) -> None:
            await screen.press("1", "2", "left", "left", "0")
            assert "1:·" in screen.text
            await screen.press("u")
            assert "1:1st" in screen.text
            await screen.press("u")
            assert "2:·" in screen.text
            await screen.press("end", "f", "home", "3")
            assert "3:F" in screen.text
            assert "1:3rd" in screen.text
            await screen.press("tab", "shift+tab", "shift+tab", "delete")
            assert "1:·" in screen.text

        play(session, story)


def test_undo_takes_the_last_submission_back_when_nothing_is_left_to_undo(new: New) -> None:
    project = new()

    async def story(screen: Screen) -> None:
        await screen.press("u")
        assert "nothing to take back" in screen.text
        await screen.press("1", "2", "3", "enter")
        assert "question 1" in screen.text
        await screen.press("u")
        assert "question 0" in screen.text
        assert "3:3rd" in screen.text
        assert "Taken back" in screen.text
        await screen.press("f", "enter")
        assert "question 1" in screen.text

    with Session(project, "ann") as session:
        play(session, story)
    [label] = labels(project)
    assert in_shown_order(project, label) == ("F", 1, 2)


def test_skip_and_flag_want_a_reason_and_escape_leaves_them(new: New) -> None:
    project = new()

    async def story(screen: Screen) -> None:
        await screen.press("s", "enter")
        assert "A few words" in screen.text
        await screen.press("escape")
        await screen.press("x", "b", "a", "d", "1", "enter")
        assert "Flagged" in screen.text
        assert "1:·" in screen.text  # the 1 was a letter of the reason
        await screen.press("s", "q", "?", "enter")
        assert "question 1" in screen.text
        await screen.press("u")
        assert "question 0" in screen.text

    with Session(project, "ann") as session:
        play(session, story)
    assert [kind for kind in kinds(project) if kind in ("flagged", "skipped", "undone")] == [
        "flagged", "skipped", "undone",
    ]  # fmt: skip


def test_a_note_is_saved_while_it_is_typed_and_escape_takes_it_back(new: New) -> None:
    project = new()

    async def story(screen: Screen) -> None:
        await screen.press("c", *"'; DROP", "enter")
        assert "Note: '; DROP" in screen.text
        await screen.press("c", "x", "escape")
        assert "Note: '; DROP" in screen.text
        assert "DROPx" not in screen.text
        await screen.press("1", "2", "3", "enter")

    with Session(project, "ann") as session:
        play(session, story)
    assert labels(project)[0].judgement.note == "'; DROP"


def test_quality_scores_where_the_project_has_them(new: New, tmp_path: Path) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("g", "6")
        assert "1:·/6" in screen.text
        assert "quality 6" in screen.text
        await screen.press("g", "9")
        assert "from 1 to 7" in screen.text
        await screen.press("g", "escape", "2", "1", "3", "enter")

    with Session(new(quality_scores=True), "ann") as session:
        play(session, story)
        assert sorted(labels(session.project)[0].judgement.scores, key=str) == [6, None, None]

    async def without(screen: Screen) -> None:
        await screen.press("g")
        assert "no quality scores" in screen.text
        await screen.press("2")
        assert "1:2nd" in screen.text

    with small_project(str(tmp_path / "plain")) as plain, Session(plain, "ann") as session:
        play(session, without)


def test_what_the_database_refuses_is_said_and_sent_again_under_the_same_name(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labeling.terminal.background.STORE_PAUSES", Pauses(first=60.0, longest=60.0))
    project = new()
    tried: list[str] = []
    real = Session.submit_and_next

    def failing(self: Session, task: Task, judgement: Judgement, *, submission: str) -> object:
        tried.append(submission)
        receipt = real(self, task, judgement, submission=submission)
        if len(tried) == 1:  # it arrived, but the answer was lost
            raise StoreError("the database refuses (gone away)")
        return receipt

    monkeypatch.setattr(Session, "submit_and_next", failing)

    async def story(screen: Screen) -> None:
        await screen.press("1", "2", "3")
        await screen.type("enter")
        await screen.until(lambda: "Not stored yet" in screen.text)
        assert "gone away" in screen.text
        await screen.type("q")
        assert "q again quits" in screen.text
        await screen.type("2")  # a rank for an item that nobody has seen
        await screen.press("enter")
        assert "question 1" in screen.text
        assert "1:·" in screen.text

    with Session(project, "ann") as session:
        play(session, story)
    assert len(tried) == 2
    assert len(set(tried)) == 1
    assert len(labels(project)) == 1
    assert kinds(project).count("submitted") == 1


def test_a_mistake_of_ours_ends_the_program_with_its_traceback(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Session, task: Task, draft: Judgement) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(Session, "save", broken)

    async def story(screen: Screen) -> None:
        await screen.type("1")
        await screen.until(lambda: screen.app.failure is not None)

    with Session(new(), "ann") as session, pytest.raises(ZeroDivisionError):
        play(session, story)


def test_an_item_that_went_elsewhere_is_said_and_counts_all_the_same(new: New) -> None:
    project = new(lease_seconds=0.2)

    async def story(screen: Screen) -> None:
        await screen.press("1", "2")
        with Session(project, "eve") as other:
            await screen.until(lambda: other.next().__class__ is Task and _taken(project))
            await screen.press("3")
            assert "ran out" in screen.text
            await screen.press("enter")

    with Session(project, "ann") as session:
        play(session, story)
    assert [label.labeler for label in labels(project)] == ["ann"]


def _taken(project: Project) -> bool:
    return "expired" in kinds(project)


def test_the_end_is_said_and_can_be_taken_back(new: New) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("1", "2", "3", "enter")
        assert "Nothing is left for you" in screen.text
        await screen.press("1", "f", "s", "enter")
        assert "Nothing is left for you" in screen.text
        await screen.press("u")
        assert "2:2nd" in screen.text

    with Session(new(num_items=1), "ann") as session:
        play(session, story)


def test_every_key_of_the_table_does_something() -> None:
    from labeling.terminal.ranking import RankingScreen

    for key in KEYS:
        name = key.action.partition("(")[0]
        assert hasattr(RankingScreen, f"action_{name}"), key


def test_what_is_typed_right_after_the_key_that_asks_is_part_of_the_answer(new: New) -> None:
    project = new()

    async def story(screen: Screen) -> None:
        for key in "chmfs12":
            screen.app.post_message(Key(key, key))  # all there before the first is handled
        await screen.until(lambda: "hmfs12" in screen.text)
        await screen.press("enter")
        assert "Note: hmfs12" in screen.text
        assert "1:·" in screen.text

    with Session(project, "ann") as session:
        play(session, story)

"""Ranking line by line while the database refuses, or while the labeler reads for long."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labeling.sessions.heartbeat import Heartbeat
from labeling.sessions.session import Session
from labeling.store.database import StoreError
from labeling.store.items import Item
from labeling.store.judgements import Task
from labeling.store.labels import read_labels
from labeling.store.project import NewItem, Project
from labeling.store.rules import LabelingRules
from labeling.terminal.plain import PlainScreen

HANG_SECONDS = 30.0


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    rules = LabelingRules(gold_share=0.0, presence_seconds=0.6)
    with Project.create(tmp_path / "p", rules) as made:
        made.add(NewItem(Item(prompt=f"question {n}", completions=("a", "b"))) for n in range(3))
        yield made


def work(session: Session, script: str) -> tuple[str, list[float]]:
    """What is said to these lines, and the pauses that were made."""
    said = io.StringIO()
    pauses: list[float] = []
    PlainScreen(session, io.StringIO(script), said, sleep=pauses.append).run()
    return said.getvalue(), pauses


def refusing(call: Callable[..., Any], *, times: int, through: bool) -> Callable[..., Any]:
    """The call, refused so often at first, before or after it was `through`."""
    left = [times]

    def refused(*arguments: Any, **named: Any) -> Any:
        if not left[0]:
            return call(*arguments, **named)
        left[0] -= 1
        if through:
            call(*arguments, **named)
        raise StoreError("the database refuses (locked)")

    return refused


@pytest.mark.parametrize("through", [False, True])
def test_ranks_that_the_database_refuses_are_submitted_once_and_for_their_own_item(
    project: Project, monkeypatch: pytest.MonkeyPatch, through: bool
) -> None:
    with Session(project, "ann") as session:
        call = refusing(session.submit_and_next, times=2, through=through)
        monkeypatch.setattr(session, "submit_and_next", call)
        said, pauses = work(session, "note one\n1 2\n1 1\n")
    assert pauses == [0.5, 1.0]
    assert said.count("Submitted.") == 2
    labels = read_labels(project)
    assert sorted(label.judgement.note for label in labels) == ["", "one"]
    assert {label.judgement.ranks == (1, 1) for label in labels if not label.judgement.note} == {True}


def test_no_rank_is_taken_between_a_skip_and_the_next_item(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(project, "ann") as session:
        first = session.next()
        assert isinstance(first, Task)
        skip = session.skip

        def skipped(task: Task, reason: str) -> None:
            skip(task, reason)
            monkeypatch.setattr(session, "next", refusing(session.next, times=3, through=False))

        monkeypatch.setattr(session, "skip", skipped)
        _, pauses = work(session, "skip no\n1 2\n")
    assert len(pauses) == 3
    [label] = read_labels(project)
    assert label.item_id != first.item_id


def test_an_item_stays_with_the_terminal_whose_labeler_reads_for_long(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(project, "ann") as reading:
        task = reading.next()
        assert isinstance(task, Task)
        beats: list[bool] = []
        heartbeat = reading.heartbeat

        def beat(task: Task) -> bool:
            beats.append(heartbeat(task))
            return beats[-1]

        monkeypatch.setattr(reading, "heartbeat", beat)
        with Heartbeat(reading) as heart:
            heart.hold(task)
            deadline = time.monotonic() + HANG_SECONDS
            while len(beats) < 6:  # longer than `presence_seconds`
                assert time.monotonic() < deadline
                time.sleep(0.05)
            other = Session(project, "ann").next()
    assert all(beats)
    assert isinstance(other, Task)
    assert other.item_id != task.item_id


def test_a_note_on_an_item_that_is_open_elsewhere_is_not_said_to_be_kept(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(project, "ann") as session:
        monkeypatch.setattr(session, "save", lambda task, draft: False)
        said, _ = work(session, "note mine\n")
    assert "open elsewhere" in said
    assert "Noted." not in said


def test_the_plain_screen_itself_beats_for_the_item_shown(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []
    with Session(project, "ann") as session:
        heartbeat = session.heartbeat

        def beat(task: Task) -> bool:
            beats.append(task.item_id)
            return heartbeat(task)

        monkeypatch.setattr(session, "heartbeat", beat)

        def reads() -> Iterator[str]:
            deadline = time.monotonic() + HANG_SECONDS
            while not beats:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield "1 2\n"

        PlainScreen(session, reads(), io.StringIO()).run()  # type: ignore[arg-type]
    [label] = read_labels(project)
    assert beats[0] == label.item_id

"""Decisions on disputed items, made on the labeler's screen with every label in sight."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labeling.__main__ import main
from labeling.analysis.decisions import decisions, disputes
from labeling.analysis.dispute_summary import DisputedTask
from labeling.sessions.adjudication import Adjudication
from labeling.sessions.session import Session, new_submission
from labeling.store.assignment import NoTask
from labeling.store.judgements import Judgement, Task
from labeling.store.labels import read_labels
from labeling.store.ledger import replay
from labeling.store.project import Project
from rlhf.data.records import Rank
from tests.support.screens import Screen, play, small_project

LABELS: dict[str, tuple[tuple[Rank, ...], ...]] = {
    "ann": ((1, 2, 3), (1, 2, "F"), (1, 2, 3)),
    "bo": ((3, 2, 1), (1, 2, "F"), (2, 1, 3)),
}
"""Labeler → ranks of three items, in the items' own order: reversed, agreed, agreed but for a pair."""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with small_project(str(tmp_path / "project"), overlap=2) as made:
        for name, rankings in LABELS.items():
            with Session(made, name) as session:
                while isinstance(task := session.next(), Task):
                    own = Judgement(rankings[task.item_id - 1], note=f"{name} says so")
                    shown = [int(text[-1], 36) - 10 for text in task.completions]
                    session.submit(task, own.in_shown_order(shown), submission=new_submission())
        yield made


def item_of(task: Task | NoTask | None) -> int:
    assert isinstance(task, DisputedTask)
    return task.item_id


def decided(project: Project) -> dict[int, tuple[Rank, ...]]:
    return {item_id: decision.ranks for item_id, decision in decisions(project).items()}


def as_shown(task: DisputedTask, ranks: dict[str, Rank]) -> Judgement:
    return Judgement(tuple(ranks[text] for text in task.completions))


def test_what_labelers_agree_on_least_comes_first_and_what_they_agree_on_never(project: Project) -> None:
    with Adjudication(project, "eva", threshold=0.7) as adjudication:
        first = adjudication.next()
        assert isinstance(first, DisputedTask)
        assert (first.item_id, first.agreement) == (1, 0.0)
        assert adjudication.next() == first
        said = as_shown(first, {"answer a": 2, "answer b": "F", "answer c": 1})
        adjudication.submit(first, said, submission=new_submission())
        second = adjudication.next()
        assert isinstance(second, DisputedTask)
        assert second.item_id == 3
        adjudication.submit(second, Judgement((1, 1, 1)), submission=new_submission())
        assert isinstance(adjudication.next(), NoTask)
    assert decided(project) == {1: (2, "F", 1), 3: (1, 1, 1)}
    assert disputes(project, threshold=0.7) == []


def test_every_label_is_shown_as_it_was_given_and_nobodys_name(project: Project) -> None:
    with Adjudication(project, "eva", threshold=0.7) as adjudication:
        task = adjudication.next()
        assert isinstance(task, DisputedTask)
        given = [dict(zip(task.completions, label.ranks, strict=True)) for label in task.labels]
        expected = [
            dict(zip(("answer a", "answer b", "answer c"), own[0], strict=True)) for own in LABELS.values()
        ]
        assert all(one in given for one in expected)

        async def story(screen: Screen) -> None:
            ranks = " ".join(
                f"{name}:{label.ranks[0]}" for name, label in zip("AB", task.labels, strict=True)
            )
            assert f"no rank · {ranks}" in screen.text
            await screen.press("p")
            assert "says so" in screen.text
            assert "agreement 0.00" in screen.text

        for size in ((80, 24), (160, 50)):
            play(adjudication, story, size=size)


def test_a_decision_is_made_taken_back_and_made_again_by_keys(project: Project) -> None:
    async def story(screen: Screen) -> None:
        assert "2 disputed items left" in screen.text
        await screen.press("1", "2", "f", "enter")
        assert 1 in decided(project)
        assert "question 2" in screen.text
        await screen.press("u")
        assert decided(project) == {}
        assert "3:F" in screen.text
        assert "2 disputed items left" in screen.text
        await screen.press("end", "3", "enter", "s", "h", "m", "enter")
        assert "No disputed item is left" in screen.text
        await screen.press("u")
        assert "question 2" in screen.text

    with Adjudication(project, "eva", threshold=0.7) as adjudication:
        play(adjudication, story)
    assert set(decided(project)) == {1}
    assert sorted(map(str, decided(project)[1])) == ["1", "2", "3"]
    with Adjudication(project, "eva", threshold=0.7) as again:
        assert item_of(again.next()) == 3  # what was passed over comes back


def test_a_decision_that_is_sent_twice_is_one(project: Project) -> None:
    with Adjudication(project, "eva", threshold=0.7) as adjudication:
        task, name = adjudication.next(), new_submission()
        assert isinstance(task, DisputedTask)
        first = adjudication.submit(task, Judgement((1, 2, 3)), submission=name)
        again = adjudication.submit(task, Judgement((1, 2, 3)), submission=name)
        assert (again.event_id, again.repeated) == (first.event_id, True)
        assert adjudication.progress().submitted == 1


def test_what_another_has_decided_meanwhile_is_not_asked_again(project: Project) -> None:
    with (
        Adjudication(project, "eva", threshold=0.7) as eva,
        Adjudication(project, "oli", threshold=0.7) as oli,
    ):
        assert item_of(eva.next()) == item_of(oli.next()) == 1
        for adjudication in (eva, oli):
            task = adjudication.next()
            assert isinstance(task, DisputedTask)
            adjudication.submit(task, Judgement((1, 2, 3)), submission=new_submission())
        task = eva.next()
        assert isinstance(task, DisputedTask)
        eva.submit(task, Judgement((1, 2, 3)), submission=new_submission())
        assert isinstance(oli.next(), NoTask)


def test_decisions_are_no_labels_and_survive_a_replay(project: Project) -> None:
    before = read_labels(project)
    with Adjudication(project, "eva", threshold=0.7) as adjudication:
        task = adjudication.next()
        assert isinstance(task, DisputedTask)
        adjudication.flag(task, "odd")
        adjudication.submit(task, Judgement((1, 2, 3)), submission=new_submission())
        adjudication.undo()
        adjudication.skip(task, "hard")
    replay(project.database)
    assert read_labels(project) == before
    assert decided(project) == {}


def test_the_command_works_line_by_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("note weighed\n1 2 F\nundo\n2 1 F\nskip later\n"))
    assert main(["adjudicate", "--project", project.where, "--labeler", "eva", "--plain"]) == 0
    shown = capsys.readouterr().out
    assert "LABELS" in shown
    assert "agreement 0.00" in shown
    assert "ann" not in shown.replace("ann says so", "")
    assert "No disputed item is left" in shown
    [decision] = decisions(project).values()
    assert (decision.item_id, decision.note) == (1, "weighed")

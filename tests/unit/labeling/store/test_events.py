"""Events and what the database keeps of them, names and tokens, on SQLite and on a real PostgreSQL."""

import json
from typing import Any

import pytest
from sqlalchemy import exc, select, text

from labeling.sessions.session import Session
from labeling.store.judgements import Judgement
from labeling.store.labels import read_labels
from labeling.store.ledger import replay
from labeling.store.tables import events
from rlhf.errors import UserError
from tests.unit.labeling.working import RANKS, handed_in, kinds, state, taken


def test_what_follows_from_the_events_is_what_the_tables_hold(make: Any, clock: Any) -> None:
    project = make(num_items=6, overlap=2, lease_seconds=100)
    ann, bo, cy = (Session(project, name) for name in ("ann", "bo", "cy"))
    handed_in(ann)
    task = taken(ann)
    ann.save(task, Judgement((1, None, None)))
    ann.flag(task, "odd")
    handed_in(bo)
    bo.undo()
    bo.skip(taken(bo), "no")
    bo.undo()
    late = taken(cy)
    clock.now += 101
    handed_in(Session(project, "di"))
    cy.submit(late, RANKS, submission="late")
    ann.leave()
    taken(Session(project, "ann"))
    before = state(project)
    replay(project.database)
    assert state(project) == before


@pytest.mark.parametrize("table", ["events", "items", "settings", "labelers", "tokens"])
@pytest.mark.parametrize("change", ["UPDATE {} SET id = id + 1000", "DELETE FROM {}"])
def test_the_database_refuses_to_change_what_has_happened(make: Any, table: str, change: str) -> None:
    project = make()
    handed_in(Session(project, "ann"))
    project.issue_token("ann")
    with pytest.raises(exc.DatabaseError, match="append-only"), project.database.write() as transaction:
        transaction.connection.execute(text(change.format(table)))


def test_a_transaction_that_breaks_off_leaves_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make()
    session = Session(project, "ann")
    task = taken(session)
    before, history = state(project), kinds(project)

    def fails(*_: object) -> None:
        raise RuntimeError("the power is gone")

    monkeypatch.setattr("labeling.store.ledger._follow", fails)
    with pytest.raises(RuntimeError):
        session.submit(task, RANKS, submission="1")
    monkeypatch.undo()
    assert (state(project), kinds(project)) == (before, history)
    assert not session.submit(task, RANKS, submission="1").repeated


def test_every_event_says_who_when_and_a_label_how_it_was_shown(make: Any, clock: Any) -> None:
    project = make()
    with Session(project, "ann") as session:
        handed_in(session)
    with project.database.read() as connection:
        rows = connection.execute(select(events).order_by(events.c.id)).mappings().all()
    assert all(row["at"] == clock.now and row["labeler_id"] == 1 for row in rows)
    [label] = [row for row in rows if row["kind"] == "submitted"]
    assert sorted(json.loads(label["shown"])) == [0, 1, 2]
    assert label["seconds"] >= 0
    assert label["session"]


def test_a_token_is_its_labelers_until_there_is_a_newer_one(make: Any) -> None:
    project = make()
    old = project.issue_token("ann")
    assert project.labeler_of(old) == "ann"
    new, bo = project.issue_token("ann"), project.issue_token("bo")
    assert [project.labeler_of(token) for token in (old, new, bo)] == [None, "ann", "bo"]
    for forged in ("", new[:-1], "' OR 1=1 --", "\0", "\ud800", old.upper()):
        assert project.labeler_of(forged) is None


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", "a\x1b[2J", "\u202eann", "a\0", "\ud800"])
def test_a_name_that_cannot_be_seen_is_no_labelers(make: Any, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        Session(make(), name)


def test_a_name_with_sql_is_a_name(make: Any) -> None:
    project = make()
    name = "Robert'); DROP TABLE events;--"
    handed_in(Session(project, name))
    assert [label.labeler for label in read_labels(project)] == [name]

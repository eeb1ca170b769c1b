"""The schema: what migrations make is what queries use, and earlier versions come up with their labels."""

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, inspect, text

from labeling.store.database import FILE, Database
from labeling.store.project import Project
from labeling.store.rules import LabelingRules
from labeling.store.schema import CURRENT, MIGRATIONS, migrate, version_of
from labeling.store.tables import METADATA, settings
from rlhf.errors import UserError

RELEASED = Path(__file__).with_name("released_schemas.sql")


def test_migrations_make_the_tables_that_queries_use(make: Any) -> None:
    with make().database.read() as connection:
        inspector = inspect(connection)
        made = {
            name: (
                [(column["name"], column["type"].python_type) for column in inspector.get_columns(name)],
                inspector.get_pk_constraint(name)["constrained_columns"],
            )
            for name in inspector.get_table_names()
            if name != "schema_versions"
        }
    assert made == {
        name: (
            [(column.name, column.type.python_type) for column in table.columns],
            [column.name for column in table.primary_key],
        )
        for name, table in METADATA.tables.items()
    }


@pytest.mark.parametrize("version", MIGRATIONS)
def test_a_released_migration_is_never_edited(version: int, tmp_path: Path) -> None:
    database = Database(tmp_path)
    with database.write() as transaction:
        migrate(transaction.connection, to=version, where="here")
        query = "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY rowid"
        made = list(transaction.connection.execute(text(query)).scalars())
    database.close()
    _, *sections = re.split(r"-- version \d+\n", RELEASED.read_text())
    released = "".join(sections[:version])
    assert [f"{statement};" for statement in made] == released.splitlines()


def test_a_database_of_version_1_is_brought_up_and_keeps_what_it_has(location: str, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir(exist_ok=True)
    database = Database(location)
    with database.write() as transaction:
        migrate(transaction.connection, to=1, where="here")
        row = {
            "at": 1.0,
            "policy": LabelingRules(overlap=7).model_dump_json(),
            "instructions": '"i"',
            "secret": "0f",
        }
        transaction.connection.execute(insert(settings).values(row))
        assert not inspect(transaction.connection).has_table("tokens")
    database.close()
    with Project.open(location) as project:
        assert (project.rules.overlap, project.instructions) == (7, "i")
        assert project.labeler_of(project.issue_token("ann")) == "ann"
        with project.database.read() as connection:
            assert version_of(connection) == CURRENT
            versions = connection.execute(text("SELECT version FROM schema_versions ORDER BY 1"))
            assert list(versions.scalars()) == [1, 2]


def test_a_migration_that_breaks_off_leaves_the_earlier_version(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir(exist_ok=True)
    database = Database(location)
    with database.write() as transaction:
        migrate(transaction.connection, to=1, where="here")
    monkeypatch.setattr("labeling.store.schema._guard", lambda *_: ["THIS IS NO SQL"])
    with pytest.raises(Exception, match="syntax error"), database.write() as transaction:
        migrate(transaction.connection, where="here")
    monkeypatch.undo()
    with database.read() as connection:
        assert version_of(connection) == 1
        assert not inspect(connection).has_table("tokens")
    database.prepare()
    with database.read() as connection:
        assert version_of(connection) == CURRENT
    database.close()


def test_a_later_version_is_left_alone(make: Any, location: str) -> None:
    with make().database.write() as transaction:
        transaction.connection.execute(text("INSERT INTO schema_versions (version, at) VALUES (99, 0)"))
    with pytest.raises(UserError, match="schema version 99"):
        Project.open(location)


def test_a_place_without_a_project_is_said_to_be_so_and_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no labeling project here"):
        Project.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_project_is_made_once(make: Any, location: str) -> None:
    make()
    with pytest.raises(UserError, match="a labeling project already"):
        Project.create(location, LabelingRules())


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("mysql://host/db", "`mysql` is not supported"),
        ("nonsense://", "is not supported"),
        ("postgresql://nobody@127.0.0.1:1/none", "the database refuses"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(location: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        Project.open(location)
    with pytest.raises(UserError) as caught:
        Project.open("postgresql://nobody:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(UserError, match="not a labeling database"):
        Project.open(tmp_path)


def test_a_database_of_something_else_is_left_alone(location: str, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir(exist_ok=True)
    database = Database(location)
    with database.write() as transaction:
        transaction.connection.execute(text("CREATE TABLE items (mine TEXT)"))
    database.close()
    with pytest.raises(UserError, match="tables of something else"):
        Project.create(location, LabelingRules())

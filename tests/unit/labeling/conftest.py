"""A labeling project on every kind of database, with a clock that a test moves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from labeling.store.items import Item
from labeling.store.project import NewItem, Project
from labeling.store.rules import LabelingRules
from tests.support.postgres import Server, server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a project may be made."""
    if request.param == "sqlite":
        return str(tmp_path / "project")
    running: Server = request.getfixturevalue("postgres")
    return running.new_database()


@dataclass
class Clock:
    """Seconds since 1970, as the test says."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Project]


@pytest.fixture
def make(location: str, clock: Clock) -> Iterator[Make]:
    """Make a project with so many items of three completions, and close it after the test."""
    made: list[Project] = []

    def make_project(num_items: int = 3, *, num_completions: int = 3, **rules: object) -> Project:
        project = Project.create(
            location, LabelingRules.model_validate({"gold_share": 0.0, **rules}), clock=clock
        )
        completions = tuple(f"answer {k}" for k in range(num_completions))
        project.add(NewItem(Item(prompt=f"question {n}", completions=completions)) for n in range(num_items))
        made.append(project)
        return project

    yield make_project
    for project in made:
        project.close()

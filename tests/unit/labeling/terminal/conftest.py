"""A small project for the screen."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labeling.store.project import Project
from tests.support.screens import small_project

New = Callable[..., Project]


@pytest.fixture
def new(tmp_path: Path) -> Iterator[New]:
    made: list[Project] = []

    def make(*completions: str, **rules: object) -> Project:
        made.append(small_project(str(tmp_path / "project"), *completions, **rules))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for project in made:
        project.close()

"""A run has one day: that on which its first stage began."""

import os
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pytest

from rlhf.runs import date as dates
from rlhf.runs.stage import StageRun, require
from rlhf.runs.stage_file import StageFile
from tests.unit.rlhf.runs.stages import make_recipe


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    dates.freeze_date(None)
    yield
    dates.freeze_date(None)


def begin(folder: Path, stage: str, *, given: str | None = None) -> StageRun:
    recipe = make_recipe(folder)
    if given is not None:
        recipe = make_recipe(folder)
        model = recipe.model.model_copy(update={"date": given})
        recipe = type(recipe)(recipe.run, recipe.tracking, model, recipe.sections, recipe.path)
    opened = StageRun.open(recipe, stage, {}, sections=("run", "model"))
    assert opened is not None
    return opened


def tomorrow(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:  # type: ignore[override]
            return date.fromisoformat(day)

    monkeypatch.setattr(dates, "date", Tomorrow)


def test_a_stage_that_resumes_after_midnight_has_the_day_on_which_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin(tmp_path, "sft") as stage:
        day = stage.date
    assert day == str(date.today())
    dates.freeze_date(None)
    tomorrow(monkeypatch, "2031-01-01")
    with begin(tmp_path, "sft") as resumed:
        assert (resumed.resuming, resumed.date, str(dates.run_date())) == (True, day, day)


def test_a_later_stage_has_the_day_of_the_first_and_the_manifest_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin(tmp_path, "sft") as first:
        day = first.date
    tomorrow(monkeypatch, "2031-01-01")
    with begin(tmp_path, "reward") as later:
        later.publish({"a.jsonl": lambda path: path.touch()}, metrics={}, counts={})
    assert require(tmp_path / "x", "reward").date == day


def test_a_stage_of_before_days_were_noted_began_when_its_file_was_written(tmp_path: Path) -> None:
    with begin(tmp_path, "sft") as stage:
        path = stage.folder / "stage.json"
    old = StageFile.read(path).model_dump(mode="json")
    del old["date"]
    path.write_text(StageFile.model_validate(old).model_dump_json(exclude={"date"}))
    os.utime(path, (0, datetime(2024, 5, 6, 7).timestamp()))
    with begin(tmp_path, "sft") as resumed:
        assert (resumed.resuming, str(dates.run_date())) == (True, "2024-05-06")


def test_the_recipe_may_name_the_day(tmp_path: Path) -> None:
    with begin(tmp_path, "sft", given="2024-02-29"):
        assert str(dates.run_date()) == str(dates.given_date()) == "2024-02-29"

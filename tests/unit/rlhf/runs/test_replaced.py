import os
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.runs.stage import StageRun, require
from rlhf.settings.recipe import Recipe
from tests.unit.rlhf.runs.stages import KLSettings, StageSettings, finish, make_recipe, opened, snapshot

OTHER = StageSettings(kl=KLSettings(coefficient=0.1))


def test_clean_begins_again(tmp_path: Path) -> None:
    finish(make_recipe(tmp_path))
    (tmp_path / "x" / "ppo" / "checkpoints").mkdir()
    with opened(make_recipe(tmp_path, OTHER), clean=True) as run:
        assert not run.resuming
        run.drop_replaced()
        assert set(os.listdir(run.folder)) == {".lock", "stage.json", "config.yaml"}


def refuse_an_input(recipe: Recipe) -> None:
    """Begin again with `--clean`, and end as a stage does that finds a mistake in what it reads."""
    with opened(recipe, clean=True):
        raise UserError("line 7 is no ranking")


def test_a_refused_input_costs_no_finished_result(tmp_path: Path) -> None:
    finish(make_recipe(tmp_path))
    before = snapshot(tmp_path)
    for recipe in (make_recipe(tmp_path), make_recipe(tmp_path, OTHER)):
        with pytest.raises(UserError, match="line 7"):
            refuse_an_input(recipe)
    assert StageRun.open(make_recipe(tmp_path), "ppo", {}) is None
    after = snapshot(tmp_path)
    assert {name: data for name, data in after.items() if not name.endswith(".lock")} == {
        name: data for name, data in before.items() if not name.endswith(".lock")
    }


@pytest.mark.parametrize("died_after", [0, 1, 2, 3])
def test_a_result_that_was_being_set_aside_when_the_process_died_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_after: int
) -> None:
    finish(make_recipe(tmp_path))
    rename, left = Path.rename, died_after

    def die(path: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            opened(make_recipe(tmp_path), clean=True)
    assert StageRun.open(make_recipe(tmp_path), "ppo", {}) is None
    require(tmp_path / "x", "ppo")


def test_a_process_that_dies_after_clean_resumes_and_the_old_result_still_waits(tmp_path: Path) -> None:
    finish(make_recipe(tmp_path))
    opened(make_recipe(tmp_path, OTHER), clean=True).close()  # died while it read its inputs
    with pytest.raises(UserError, match="line 7"):
        refuse_an_input(make_recipe(tmp_path, OTHER))
    assert StageRun.open(make_recipe(tmp_path), "ppo", {}) is None


@pytest.mark.parametrize("clean", [True, False])
def test_a_folder_that_no_stage_has_made_is_left_alone(tmp_path: Path, clean: bool) -> None:
    folder = tmp_path / "x" / "ppo"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"no stage has made \(thesis\.tex\)"):
        StageRun.open(make_recipe(tmp_path), "ppo", {}, clean=clean)
    assert (folder / "thesis.tex").read_text() == "years of work"

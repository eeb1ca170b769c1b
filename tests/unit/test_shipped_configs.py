"""Every recipe that ships is read as a user would read it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.settings.groups import STAGES
from rlhf.settings.recipe import config_hash, load_recipe
from rlhf.settings.yaml_files import write_yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted([*ROOT.glob("configs/*/recipe.yaml"), *ROOT.glob("configs/cluster/*.yaml")])
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")


def overrides(path: Path) -> list[str]:
    """What a user must add: MODEL, where the recipe leaves the model to the user."""
    model = (yaml.safe_load(path.read_text()) or {}).get("model") or {}
    return [] if model.get("path") or model.get("scratch") else ["model.path=owner/name"]


def test_the_recipes_that_the_makefile_names_ship() -> None:
    assert {path.parent.name for path in RECIPES} >= {"tiny", "stories", "hh"}


@each_recipe
def test_a_recipe_parses_and_has_every_stage(path: Path) -> None:
    recipe = load_recipe(path, overrides(path))
    assert {"sft", "reward", "ppo"} <= set(recipe.sections) <= set(STAGES)


@each_recipe
def test_what_a_run_writes_down_reads_back_as_the_same_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, overrides(path))
    write_yaml(tmp_path / "config.yaml", recipe.resolved)
    again = load_recipe(tmp_path / "config.yaml")
    names = ("run", "model", *recipe.sections)
    assert again.resolved == recipe.resolved
    assert config_hash(again.semantic(*names)) == config_hash(recipe.semantic(*names))


def source_paths(settings: Any) -> list[str]:
    """The `path` of every source in a section, wherever it stands."""
    if isinstance(settings, list):
        return [path for item in settings for path in source_paths(item)]
    if not isinstance(settings, dict):
        return []
    own = [settings["path"]] if "path" in settings and "columns" in settings else []
    return own + [path for value in settings.values() for path in source_paths(value)]


@each_recipe
def test_a_file_that_a_recipe_names_ships_with_it(path: Path) -> None:
    recipe = load_recipe(path, overrides(path))
    for stage in recipe.sections:
        for source in source_paths(recipe.resolved[stage]):
            if source.startswith("configs/"):
                assert (ROOT / source).is_file(), source

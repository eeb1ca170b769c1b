from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlhf.errors import UserError
from rlhf.settings.recipe import Recipe, config_hash, load_recipe
from rlhf.settings.yaml_files import write_yaml
from tests.unit.rlhf.settings.recipes import error_of, load, semantic_hash, stage

# What a recipe says


def test_a_recipe_gives_typed_settings_with_defaults_filled_in(path: Path) -> None:
    recipe = load(path)
    assert (recipe.run.name, recipe.run.seed, recipe.run.device) == ("first", 3, "auto")
    assert recipe.run_folder == Path("runs/first")
    assert recipe.model.scratch is not None
    assert (recipe.model.scratch.hidden_size, recipe.model.scratch.num_layers) == (64, 4)
    assert stage(recipe).sources[0].columns == {"prompt": "question"}
    assert list(recipe.sections) == ["sft"]


def test_settings_cannot_be_changed_afterwards(path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(path).run.seed = 4


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "+1e-5", "1.e-5", ".1e-4", "0.00001", "1.0e-5"])
def test_a_float_may_be_written_in_every_usual_way(path: Path, text: str) -> None:
    assert stage(load(path, f"sft.optimizer.learning_rate={text}")).optimizer.learning_rate == pytest.approx(
        1e-5
    )


def test_a_whole_number_is_a_float_but_never_the_reverse(path: Path) -> None:
    assert stage(load(path, "sft.optimizer.learning_rate=1")).optimizer.learning_rate == 1.0
    assert "`sft.steps` is 10.0, and must be a whole number" in error_of(path, "sft.steps=10.0")


def test_off_and_a_date_are_words(path: Path) -> None:
    assert load(path, "tracking.wandb=off").tracking.wandb == "off"
    assert load(path, "run.name=2026-01-31").run.name == "2026-01-31"
    assert load(path, text="model: {scratch: {}}\ntracking:\n  wandb: off\n").tracking.wandb == "off"


def test_only_true_and_false_are_switches(path: Path) -> None:
    assert stage(load(path, "sft.packing=true")).packing is True
    assert '`sft.packing` is "yes", and must be true or false' in error_of(path, "sft.packing=yes")


def test_a_section_that_the_recipe_lacks_is_a_user_error(path: Path) -> None:
    with pytest.raises(UserError, match="has no `ppo` section"):
        load(path).section("ppo")


# Overrides


def test_overrides_apply_in_order(path: Path) -> None:
    assert stage(load(path, "sft.steps=1", "sft.steps=2")).steps == 2


def test_an_override_may_name_a_section_or_a_group_that_the_file_leaves_out(path: Path) -> None:
    recipe = load(path, "tracking.project=mine", "sft.extra.learning_rate=2")
    extra = stage(recipe).extra
    assert recipe.tracking.project == "mine"
    assert extra is not None
    assert extra.learning_rate == 2.0


def test_an_override_reaches_into_a_list(path: Path) -> None:
    recipe = load(path, "sft.sources.1.path=c.jsonl", "sft.sources.0.columns.completion=answer")
    first, second = stage(recipe).sources
    assert (first.path, second.path) == ("a.jsonl", "c.jsonl")
    assert first.columns == {"prompt": "question", "completion": "answer"}


def test_an_override_may_replace_a_list_or_one_of_its_items(path: Path) -> None:
    assert stage(load(path, 'sft.stop=["a", b]', "sft.stop.1=c")).stop == ["a", "c"]
    assert stage(load(path, "sft.sources=[]")).sources == []


def test_an_empty_override_unsets(path: Path) -> None:
    recipe = load(path, "model.scratch=", "model.path=some/model")
    assert (recipe.model.scratch, recipe.model.path) == (None, "some/model")
    assert load(path, "model.scratch=null", "model.path=some/model").model == recipe.model


def test_everything_after_the_first_equals_sign_is_the_value(path: Path) -> None:
    assert load(path, "tracking.project=a=b").tracking.project == "a=b"


def test_a_value_that_is_no_yaml_is_taken_as_text(path: Path) -> None:
    assert load(path, "tracking.project=[a").tracking.project == "[a"


def test_quotes_make_a_number_a_name(path: Path) -> None:
    assert load(path, 'run.name="7"').run.name == "7"
    assert error_of(path, "run.name=7").splitlines() == [
        "override run.name: `run.name` is 7, and must be text",
        "  Put it in quotes, in a shell with others around them: 'run.name=\"…\"'. "
        "What it is: The run's name: its folder is `<folder>/<name>`.",
    ]


@pytest.mark.parametrize("override", ["sft.steps", "=3", "sft"])
def test_an_override_without_key_or_value_is_refused(path: Path, override: str) -> None:
    assert f"`{override}` is not an override" in error_of(path, override)


@pytest.mark.parametrize("key", ["sft.steps.x", "sft.sources.0.path.x", "sft.stop.0.x", "run.seed.x.y"])
def test_an_override_cannot_reach_into_a_value(path: Path, key: str) -> None:
    assert f"`{key[: key.index('.x')]}` is a value, not a group" in error_of(path, "sft.stop=[a]", f"{key}=1")


@pytest.mark.parametrize("item", ["2", "-1", "x", "²"])
def test_an_override_cannot_name_an_item_that_is_not_there(path: Path, item: str) -> None:
    assert f"`{item}` is not an item of a list of 2" in error_of(path, f"sft.sources.{item}.path=c.jsonl")


# What decides whether a stage is up to date


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("run.seed=4", True),
        ("model.scratch.hidden_size=128", True),
        ("sft.optimizer.learning_rate=2e-5", True),
        ("sft.sources.1.split=test", True),
        ("run.name=second", False),
        ("run.folder=elsewhere", False),
        ("run.device=cpu", False),
        ("tracking.wandb=off", False),
        ("sft.micro_batch=1", False),
        ("sft.optimizer.learning_rate=0.00001", False),
        ("sft.packing=false", False),
        ("sft.sources.1.path=elsewhere.jsonl", False),
    ],
)
def test_only_settings_that_change_a_result_change_the_hash(path: Path, override: str, changes: bool) -> None:
    assert (semantic_hash(load(path)) != semantic_hash(load(path, override))) is changes


def test_the_hash_ignores_the_order_of_keys() -> None:
    assert (
        config_hash({"a": 1, "b": [2]}) == config_hash({"b": [2], "a": 1}) != config_hash({"a": 1, "b": [3]})
    )


# The resolved configuration next to a stage's output


def round_trip(recipe: Recipe, folder: Path) -> Recipe:
    write_yaml(folder / "resolved.yaml", recipe.resolved)
    return load_recipe(folder / "resolved.yaml")


def test_the_resolved_recipe_is_the_recipe(path: Path) -> None:
    recipe = load(
        path, "sft.extra.warmup=linear", "run.folder=else where", "sft.stop=['\\n\\nHuman:', é, off]"
    )
    again = round_trip(recipe, path.parent)
    assert again.resolved == recipe.resolved
    assert (again.run, again.tracking, again.model) == (recipe.run, recipe.tracking, recipe.model)
    assert again.sections == recipe.sections
    assert semantic_hash(again) == semantic_hash(recipe)


def test_the_resolved_recipe_names_every_setting(path: Path) -> None:
    resolved = load(path).resolved
    assert resolved["sft"]["optimizer"] == {"learning_rate": 1e-5, "warmup": "off"}
    assert set(resolved) == {"run", "tracking", "model", "sft"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_being_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("text")
    path = folder / "recipe.yaml"
    write_yaml(path, {"model": {"path": text}})
    assert load_recipe(path).model.path == text
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {"model": {"path": text}}


@pytest.mark.parametrize(
    "text", ["1e5", "-1E-3", ".nan", "off", "yes", "null", "010", "1_0", "2026-01-31", "=", "1:30"]
)
def test_text_that_looks_like_something_else_survives_being_written(path: Path, text: str) -> None:
    write_yaml(path, {"model": {"path": text}})
    assert load_recipe(path).model.path == text
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {"model": {"path": text}}


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_any_number_survives_being_written(tmp_path_factory: pytest.TempPathFactory, number: float) -> None:
    path = tmp_path_factory.mktemp("number") / "recipe.yaml"
    write_yaml(path, {"model": {"path": "m"}, "sft": {"steps": 1, "optimizer": {"learning_rate": number}}})
    assert stage(load_recipe(path)).optimizer.learning_rate == number

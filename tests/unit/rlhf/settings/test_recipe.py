import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from rlhf.errors import UserError
from rlhf.settings.groups import Settings, SourceSettings, setting
from rlhf.settings.recipe import Recipe, config_hash, load_recipe
from rlhf.settings.yaml_files import write_yaml

RECIPE = """\
run:
  name: first
  seed: 3
model:
  scratch:
    hidden_size: 64
sft:
  steps: 10
  optimizer:
    learning_rate: 1e-5
  sources:
    - path: a.jsonl
      columns: {prompt: question}
    - path: b.jsonl
"""


class OptimizerSettings(Settings):
    """A group inside the section."""

    learning_rate: float = setting(1e-4, gt=0)
    """How far a step goes."""
    warmup: Literal["linear", "off"] = "off"
    """How it starts."""


class StageSettings(Settings):
    """A section as the packages have them."""

    steps: int = setting(ge=1)
    """Optimizer steps."""
    warmup_steps: int = 0
    """The first of them."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """A group."""
    extra: OptimizerSettings | None = None
    """A group that may be missing."""
    sources: list[SourceSettings] = []
    """A list of groups."""
    modules: str | list[str] = "all"
    """A union."""
    stop: list[str] = []
    """A list of values."""
    packing: bool = False
    """A switch."""
    micro_batch: int = setting(4, semantic=False)
    """Cannot change a result."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> "StageSettings":
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) exceeds steps ({self.steps})")
        return self


@pytest.fixture(autouse=True)
def _stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts `StageSettings` in the place of the `sft` package's section."""
    config = ModuleType("sft.config")
    config.SECTION = StageSettings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sft", ModuleType("sft"))
    monkeypatch.setitem(sys.modules, "sft.config", config)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def load(path: Path, *overrides: str, text: str = RECIPE) -> Recipe:
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def stage(recipe: Recipe) -> StageSettings:
    section = recipe.section("sft")
    assert isinstance(section, StageSettings)
    return section


def complaint(path: Path, *overrides: str, text: str = RECIPE) -> str:
    """What the user reads, the recipe's own folder left out."""
    with pytest.raises(UserError) as caught:
        load(path, *overrides, text=text)
    return str(caught.value).replace(f"{path.parent}/", "")


def semantic_hash(recipe: Recipe) -> str:
    return config_hash(recipe.semantic("run", "model", "sft"))


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
    assert "`sft.steps` is 10.0, and must be a whole number" in complaint(path, "sft.steps=10.0")


def test_off_and_a_date_are_words(path: Path) -> None:
    assert load(path, "tracking.wandb=off").tracking.wandb == "off"
    assert load(path, "run.name=2026-01-31").run.name == "2026-01-31"
    assert load(path, text="model: {scratch: {}}\ntracking:\n  wandb: off\n").tracking.wandb == "off"


def test_only_true_and_false_are_switches(path: Path) -> None:
    assert stage(load(path, "sft.packing=true")).packing is True
    assert '`sft.packing` is "yes", and must be true or false' in complaint(path, "sft.packing=yes")


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
    assert complaint(path, "run.name=7").splitlines() == [
        "override run.name: `run.name` is 7, and must be text",
        "  Put it in quotes, in a shell with others around them: 'run.name=\"…\"'. "
        "What it is: The run's name: its folder is `<folder>/<name>`.",
    ]


@pytest.mark.parametrize("override", ["sft.steps", "=3", "sft"])
def test_an_override_without_key_or_value_is_refused(path: Path, override: str) -> None:
    assert f"`{override}` is not an override" in complaint(path, override)


@pytest.mark.parametrize("key", ["sft.steps.x", "sft.sources.0.path.x", "sft.stop.0.x", "run.seed.x.y"])
def test_an_override_cannot_reach_into_a_value(path: Path, key: str) -> None:
    assert f"`{key[: key.index('.x')]}` is a value, not a group" in complaint(
        path, "sft.stop=[a]", f"{key}=1"
    )


@pytest.mark.parametrize("item", ["2", "-1", "x", "²"])
def test_an_override_cannot_name_an_item_that_is_not_there(path: Path, item: str) -> None:
    assert f"`{item}` is not an item of a list of 2" in complaint(path, f"sft.sources.{item}.path=c.jsonl")


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "line", "key", "right"),
    [
        ("  seed: 3", 3, "run.sead", "seed"),
        ("    hidden_size: 64", 6, "model.scratch.hiden_size", "hidden_size"),
        ("    learning_rate: 1e-5", 10, "sft.optimizer.learning_rat", "learning_rate"),
        ("    - path: a.jsonl", 12, "sft.sources.0.pat", "path"),
    ],
)
def test_a_misspelled_key_is_named_with_its_line_and_the_likely_one(
    path: Path, wrong: str, line: int, key: str, right: str
) -> None:
    text = RECIPE.replace(wrong, wrong.replace(right, key.rpartition(".")[2]))
    assert complaint(path, text=text) == (
        f"recipe.yaml, line {line}: unknown key `{key}`\n  Did you mean `{right}`?"
    )


def test_a_misspelled_section_is_named_too(path: Path) -> None:
    text = RECIPE.replace("sft:", "sfd:")
    assert complaint(path, text=text) == "recipe.yaml, line 7: unknown key `sfd`\n  Did you mean `sft`?"


def test_a_key_like_no_other_lists_those_that_exist(path: Path) -> None:
    assert complaint(path, "sft.optimizer.zzz=1") == (
        "override sft.optimizer.zzz: unknown key `sft.optimizer.zzz`\n  Known here: learning_rate, warmup."
    )
    assert complaint(path, "zzz.a=1").startswith("override zzz: unknown key `zzz`\n  Known here: run, ")


def test_a_key_that_is_a_number_is_unknown_as_well(path: Path) -> None:
    assert "unknown key `sft.1`" in complaint(path, text=RECIPE + "  1: x\n")


def test_a_misspelled_required_key_is_reported_as_misspelled_not_as_missing(path: Path) -> None:
    text = RECIPE.replace("  steps: 10", "  stepz: 10")
    assert complaint(path, text=text) == (
        "recipe.yaml, line 8: unknown key `sft.stepz`\n  Did you mean `steps`?"
    )


def test_a_missing_key_says_what_it_is_for(path: Path) -> None:
    assert complaint(path, text=RECIPE.replace("  steps: 10\n", "")) == (
        "recipe.yaml, line 7: `sft.steps` is missing\n"
        "  Give it a value here, or as an override: `sft.steps=…`. What it is: Optimizer steps."
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sft.steps", "'10'", '"10", and must be a whole number\n  Write it without quotes.'),
        ("sft.steps", "0", "0, and must be at least 1\n  Change it. What it is: Optimizer steps."),
        ("sft.steps", "true", "true, and must be a whole number"),
        ("sft.steps", "", "null, and must be a whole number"),
        ("sft.steps", ".nan", "NaN, and must be a whole number"),
        ("sft.optimizer.learning_rate", "fast", '"fast", and must be a number\n  Change it, or leave it out'),
        ("sft.optimizer.learning_rate", ".inf", "Infinity, and must be a finite number"),
        ("sft.optimizer.warmup", "of", "\"of\", and must be one of 'linear', 'off'\n  Did you mean `off`?"),
        ("sft.optimizer", "[]", "[], and must be a group of settings"),
        ("sft.modules", "7", "7, and must be text or a list"),
        ("sft.sources.0.columns.prompt", "[]", "[], and must be text"),
        ("run.name", "../up", '"../up", and must be letters, digits, `.`, `_` and `-`, with a letter or a'),
        ("run.seed", "4294967296", "4294967296, and must be less than 4294967296"),
        ("run", "3", "3, and must be a group of settings"),
        (
            "model.scratch.vocab_size",
            "9",
            "9, and must be at least 300\n  Change it, or leave it out: the def",
        ),
    ],
)
def test_a_wrong_value_is_named_by_its_key_and_place(path: Path, key: str, value: str, message: str) -> None:
    assert complaint(path, f"{key}={value}").startswith(f"override {key}: `{key}` is {message}")


def test_a_wrong_value_in_the_file_is_named_by_its_line(path: Path) -> None:
    assert complaint(path, text=RECIPE.replace("1e-5", "-1")) == (
        "recipe.yaml, line 10: `sft.optimizer.learning_rate` is -1, and must be more than 0\n"
        "  Change it, or leave it out: the default is 0.0001. What it is: How far a step goes."
    )


def test_what_an_override_replaced_is_not_blamed_on_the_file(path: Path) -> None:
    assert complaint(path, "sft.optimizer={learning_rate: fast}").startswith(
        "override sft.optimizer: `sft.optimizer.learning_rate` is "
    )


def test_settings_that_contradict_each_other_name_their_section(path: Path) -> None:
    assert complaint(path, text=RECIPE.replace("  steps: 10", "  steps: 10\n  warmup_steps: 11")) == (
        "recipe.yaml, line 7: `sft`: warmup_steps (11) exceeds steps (10)\n  Change one of these settings."
    )


@pytest.mark.parametrize(
    "overrides",
    [["model.path=some/model"], ["model.scratch=null"]],
    ids=["both", "neither"],
)
def test_a_model_is_either_given_or_made(path: Path, overrides: list[str]) -> None:
    assert "give either `path` (a model) or `scratch`" in complaint(path, *overrides)


def test_the_heads_of_a_new_model_divide_its_width(path: Path) -> None:
    assert "num_heads (5) must divide hidden_size (64)" in complaint(path, "model.scratch.num_heads=5")


def test_a_key_given_twice_is_refused(path: Path) -> None:
    text = RECIPE + "run:\n  seed: 4\n"
    assert complaint(path, text=text) == (
        "recipe.yaml, line 15: `run` is there twice, first in line 1\n  Keep one of them."
    )


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot read the recipe \(No such file or directory\)"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"cannot read the recipe \(Is a directory\)"):
        load_recipe(tmp_path)


def test_a_file_that_is_not_text_is_a_user_error(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  name: [a\nsft: {}\n", "recipe.yaml, line 3: not valid YAML"),
        ("run:\n\tname: a\n", "recipe.yaml, line 2: not valid YAML"),
        ("run: *nobody\n", "recipe.yaml, line 1: not valid YAML"),
        ("run: !!python/name:os.system x\n", "recipe.yaml, line 1: not valid YAML"),
        ("run: \x00\n", "recipe.yaml: not valid YAML"),
        ("run: &a [*a]\n", "recipe.yaml: an anchor contains itself"),
        (
            "run:\n  name: !!binary aGk=\n",
            "recipe.yaml, line 1: `run` holds what is neither text, number, list nor",
        ),
    ],
)
def test_malformed_yaml_is_named_by_its_line(path: Path, text: str, message: str) -> None:
    assert complaint(path, text=text).startswith(message)


@pytest.mark.parametrize("text", ["", "- run\n", "run\n", "null\n", "# nothing\n"])
def test_a_recipe_must_be_a_mapping(path: Path, text: str) -> None:
    assert complaint(path, text=text).startswith("recipe.yaml: a recipe is a YAML mapping of sections")


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

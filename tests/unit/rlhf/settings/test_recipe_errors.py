from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.settings.recipe import load_recipe
from tests.unit.rlhf.settings.recipes import RECIPE, error_of


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
    assert error_of(path, text=text) == (
        f"recipe.yaml, line {line}: unknown key `{key}`\n  Did you mean `{right}`?"
    )


def test_a_misspelled_section_is_named_too(path: Path) -> None:
    text = RECIPE.replace("sft:", "sfd:")
    assert error_of(path, text=text) == "recipe.yaml, line 7: unknown key `sfd`\n  Did you mean `sft`?"


def test_a_key_like_no_other_lists_those_that_exist(path: Path) -> None:
    assert error_of(path, "sft.optimizer.zzz=1") == (
        "override sft.optimizer.zzz: unknown key `sft.optimizer.zzz`\n  Known here: learning_rate, warmup."
    )
    assert error_of(path, "zzz.a=1").startswith("override zzz: unknown key `zzz`\n  Known here: run, ")


def test_a_key_that_is_a_number_is_unknown_as_well(path: Path) -> None:
    assert "unknown key `sft.1`" in error_of(path, text=RECIPE + "  1: x\n")


def test_a_misspelled_required_key_is_reported_as_misspelled_not_as_missing(path: Path) -> None:
    text = RECIPE.replace("  steps: 10", "  stepz: 10")
    assert error_of(path, text=text) == (
        "recipe.yaml, line 8: unknown key `sft.stepz`\n  Did you mean `steps`?"
    )


def test_a_missing_key_says_what_it_is_for(path: Path) -> None:
    assert error_of(path, text=RECIPE.replace("  steps: 10\n", "")) == (
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
    assert error_of(path, f"{key}={value}").startswith(f"override {key}: `{key}` is {message}")


def test_a_wrong_value_in_the_file_is_named_by_its_line(path: Path) -> None:
    assert error_of(path, text=RECIPE.replace("1e-5", "-1")) == (
        "recipe.yaml, line 10: `sft.optimizer.learning_rate` is -1, and must be more than 0\n"
        "  Change it, or leave it out: the default is 0.0001. What it is: How far a step goes."
    )


def test_what_an_override_replaced_is_not_blamed_on_the_file(path: Path) -> None:
    assert error_of(path, "sft.optimizer={learning_rate: fast}").startswith(
        "override sft.optimizer: `sft.optimizer.learning_rate` is "
    )


def test_settings_that_contradict_each_other_name_their_section(path: Path) -> None:
    assert error_of(path, text=RECIPE.replace("  steps: 10", "  steps: 10\n  warmup_steps: 11")) == (
        "recipe.yaml, line 7: `sft`: warmup_steps (11) exceeds steps (10)\n  Change one of these settings."
    )


@pytest.mark.parametrize(
    "overrides",
    [["model.path=some/model"], ["model.scratch=null"]],
    ids=["both", "neither"],
)
def test_a_model_is_either_given_or_made(path: Path, overrides: list[str]) -> None:
    assert "give either `path` (a model) or `scratch`" in error_of(path, *overrides)


def test_the_heads_of_a_new_model_divide_its_width(path: Path) -> None:
    assert "num_heads (5) must divide hidden_size (64)" in error_of(path, "model.scratch.num_heads=5")


def test_a_key_given_twice_is_refused(path: Path) -> None:
    text = RECIPE + "run:\n  seed: 4\n"
    assert error_of(path, text=text) == (
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
    assert error_of(path, text=text).startswith(message)


@pytest.mark.parametrize("text", ["", "- run\n", "run\n", "null\n", "# nothing\n"])
def test_a_recipe_must_be_a_mapping(path: Path, text: str) -> None:
    assert error_of(path, text=text).startswith("recipe.yaml: a recipe is a YAML mapping of sections")

from argparse import ArgumentParser
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from rlhf.commands.arguments import load, settings_help, stage_arguments
from rlhf.settings.groups import Settings, setting


class Inner(Settings):
    """A group."""

    size: int = setting(3, ge=1)
    """How large."""


class Outer(Settings):
    """What is set here.

    And more about it.
    """

    kind: Literal["a", "b"] = "a"
    """Which kind."""
    needed: float
    """Must be given."""
    maybe: str | None = None
    """May be given."""
    inner: Inner = Inner(size=5)
    """The group that counts."""
    many: list[Inner] = []
    """Several of them."""
    words: list[Annotated[str, Field(min_length=1)]] = []
    """Not empty ones."""


def test_options_and_overrides_come_in_any_order() -> None:
    argv = ["run.seed=1", "--config", "recipe.yaml", "model.path=x", "--clean", "sft.method=none"]
    arguments = stage_arguments("sft", "", argv)
    assert arguments.config == Path("recipe.yaml")
    assert arguments.overrides == ["run.seed=1", "model.path=x", "sft.method=none"]
    assert arguments.clean


def test_a_stage_may_add_arguments() -> None:
    def add(parser: ArgumentParser) -> None:
        parser.add_argument("--limit", type=int)

    assert stage_arguments("sft", "", ["--config", "x", "--limit", "3"], extra=add).limit == 3


@pytest.mark.parametrize("argv", [[], ["--config"], ["--conf", "x"], ["--config", "x", "--seed", "1"]])
def test_a_wrong_command_line_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        stage_arguments("sft", "", argv)
    assert exit_info.value.code == 2
    assert "usage: python -m sft" in capsys.readouterr().err


def test_the_recipe_gets_the_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {path: x}\n")
    assert load(stage_arguments("sft", "", ["--config", str(path), "run.seed=7"])).run.seed == 7


def test_help_shows_every_setting_with_its_type_default_and_docstring() -> None:
    text = settings_help({"outer": Outer}, width=70)
    assert text == (
        "\nouter: What is set here."
        "\n  outer.kind: a | b = a\n      Which kind."
        "\n  outer.needed: float (required)\n      Must be given."
        "\n  outer.maybe: text\n      May be given."
        '\n  outer.inner: group = {"size": 5}\n      The group that counts.'
        "\n  outer.inner.size: int = 3\n      How large."
        "\n  outer.many: list, as outer.inner = []\n      Several of them."
        "\n  outer.words: list[text] = []\n      Not empty ones."
    )

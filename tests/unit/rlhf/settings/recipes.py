"""A recipe of one stage for tests, and the settings of that stage."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import model_validator

from rlhf.errors import UserError
from rlhf.settings.groups import Settings, SourceSettings, setting
from rlhf.settings.recipe import Recipe, config_hash, load_recipe

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


def load(path: Path, *overrides: str, text: str = RECIPE) -> Recipe:
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def stage(recipe: Recipe) -> StageSettings:
    section = recipe.section("sft")
    assert isinstance(section, StageSettings)
    return section


def error_of(path: Path, *overrides: str, text: str = RECIPE) -> str:
    """What the user reads, the recipe's own folder left out."""
    with pytest.raises(UserError) as caught:
        load(path, *overrides, text=text)
    return str(caught.value).replace(f"{path.parent}/", "")


def semantic_hash(recipe: Recipe) -> str:
    return config_hash(recipe.semantic("run", "model", "sft"))

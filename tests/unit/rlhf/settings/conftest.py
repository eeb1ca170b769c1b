"""A stage's settings in the place of SFT's, and the file of a recipe."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.rlhf.settings.recipes import StageSettings


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

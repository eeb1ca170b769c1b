"""A stage for tests, with settings of every kind, that a test opens, finishes or runs in a process."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf.runs.manifest import Manifest
from rlhf.runs.stage import StageRun
from rlhf.settings.groups import LoraSettings, ModelSettings, RunSettings, Settings, TrackingSettings, setting
from rlhf.settings.recipe import Recipe

ROOT = Path(__file__).resolve().parents[4]


class KLSettings(Settings):
    """A group."""

    coefficient: float = 0.05
    """A number that changes the result."""


class StageSettings(Settings):
    """A section with a group and a setting that changes nothing."""

    kl: KLSettings = KLSettings()
    """A group."""
    adapter: LoraSettings | None = None
    """A group that may be missing."""
    stop: list[str] = []
    """A list."""
    micro_batch_size: int = setting(4, semantic=False)
    """A setting that changes no result."""


def make_recipe(
    folder: Path, ppo: StageSettings | None = None, *, name: str = "x", seed: int = 0, threads: int = 0
) -> Recipe:
    return Recipe(
        run=RunSettings(name=name, folder=folder, seed=seed, threads=threads),
        tracking=TrackingSettings(),
        model=ModelSettings(path="base"),
        sections={"ppo": ppo or StageSettings()},
        path=Path("recipe.yaml"),
    )


def opened(recipe: Recipe, inputs: Mapping[str, str] | None = None, *, clean: bool = False) -> StageRun:
    run = StageRun.open(recipe, "ppo", inputs or {}, clean=clean)
    assert run is not None
    return run


def write_weights(content: bytes = b"weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(content)
        (folder / "extra").mkdir()
        (folder / "extra" / "config.json").write_text("{}")

    return write


def finish(recipe: Recipe, inputs: Mapping[str, str] | None = None) -> Manifest:
    with opened(recipe, inputs) as run:
        return run.publish(write_model=write_weights(), metrics={"ppo/reward_mean": 0.5}, counts={})


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code` with this module's names, `UserError` and `StageRun`."""
    preamble = (
        "import sys\n"
        "from rlhf.errors import UserError\n"
        "from rlhf.runs.stage import StageRun\n"
        "from tests.unit.rlhf.runs.stages import *\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", preamble + code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

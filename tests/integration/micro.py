"""A stage of `micro.yaml`, the three stages in a few seconds, run in this process."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import ppo.__main__
import reward.__main__
import sft.__main__
from rlhf.errors import run_command

CONFIG = "tests/integration/micro.yaml"
MAIN = {"sft": sft.__main__.main, "reward": reward.__main__.main, "ppo": ppo.__main__.main}
STAGES = tuple(MAIN)


def start(stage: str, folder: Path, *arguments: str) -> int:
    """Run the stage on runs in `folder`; its exit status."""
    return run_command(MAIN[stage], ["--config", CONFIG, f"run.folder={folder}", *arguments])


def copy_stages(run: Path, to: Path, stages: Sequence[str] = ("sft", "reward")) -> None:
    """Give another run the finished stages of this one."""
    for stage in stages:
        shutil.copytree(run / stage, to / stage)

"""A stage of `micro.yaml`, the three stages in a few seconds, run in this process; and comparing two runs."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

import ppo.__main__
import reward.__main__
import sft.__main__
from rlhf.commands.process import run_command
from rlhf.runs.metrics import read_metrics
from rlhf.runs.stage import require
from tests.support.make_environment import make_environment

CONFIG = "tests/integration/micro.yaml"
MAIN = {"sft": sft.__main__.main, "reward": reward.__main__.main, "ppo": ppo.__main__.main}
STAGES = tuple(MAIN)
MODEL = {
    "sft": "model/model.safetensors",
    "reward": "model/adapter_model.safetensors",
    "ppo": "model/adapter_model.safetensors",
}
_TIMES = ("_seconds", "_per_second")


def start(stage: str, folder: Path, *arguments: str) -> int:
    """Run the stage on runs in `folder`; its exit status."""
    return run_command(MAIN[stage], ["--config", CONFIG, f"run.folder={folder}", *arguments])


def make_run(root: Path, runs: Path, name: str, *words: str, settings: str = "") -> "subprocess.Popen[str]":
    """`make` with these words on the run `name`, as a user starts it, with its output in a pipe."""
    return subprocess.Popen(
        [
            *("make", "VENV=none", f"PYTHON={sys.executable}", f"CONFIG={CONFIG}", f"RUN={name}", *words),
            f"SET=run.folder={runs} tracking.wandb=off {settings}",
        ],
        cwd=root,
        env=make_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def copy_stages(run: Path, to: Path, stages: Sequence[str] = ("sft", "reward")) -> None:
    """Give another run the finished stages of this one."""
    for stage in stages:
        shutil.copytree(run / stage, to / stage)


def assert_same_results(one: Path, other: Path, stage: str) -> None:
    """The runs have the same weights, metrics and final metrics, bitwise, times aside."""
    assert_same_weights(one, other, stage)
    rows = [
        [{k: v for k, v in row.items() if not k.endswith(_TIMES)} for row in read_metrics(path)]
        for path in (run / stage / "metrics.jsonl" for run in (one, other))
    ]
    assert rows[0] == rows[1]
    assert require(one, stage).metrics == require(other, stage).metrics


def assert_same_weights(one: Path, other: Path, stage: str) -> None:
    """The stage has published the same weights in both runs, bitwise."""
    weights = [load_file(run / stage / MODEL[stage]) for run in (one, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())

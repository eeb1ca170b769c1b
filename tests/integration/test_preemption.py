"""A stage that a signal or its own figures end: what it leaves, and how it goes on from there."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ppo.rollout
import ppo.train
import reward.trainer
from ppo.evaluate import Evaluator
from ppo.update import Updater
from rlhf import checkpoints
from rlhf.artifacts import require
from rlhf.tracking import read_metrics
from sft.trainer import Trainer
from tests.integration.micro import copy_stages, start
from tests.wandb_offline import merge_steps, read_offline_run

pytestmark = pytest.mark.slow

MODEL = {
    "sft": "model/model.safetensors",
    "reward": "model/adapter_model.safetensors",
    "ppo": "model/adapter_model.safetensors",
}
TIMES = ("_seconds", "_per_second")


@pytest.fixture(autouse=True)
def _in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def at_call(count: int, act: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which does `act` at the beginning of its `count`-th call."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            act()
        return function(*args, **kwargs)

    return counted


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def assert_same_course(one: Path, other: Path, stage: str) -> None:
    """The runs have the same weights, metrics and figures, to the bit; and W&B has what the metrics have."""
    weights = [load_file(run / stage / MODEL[stage]) for run in (one, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    rows = [
        [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in read_metrics(path)]
        for path in (run / stage / "metrics.jsonl" for run in (one, other))
    ]
    assert rows[0] == rows[1]
    assert require(one, stage).metrics == require(other, stage).metrics
    offline = read_offline_run(other / stage)
    assert offline.history == merge_steps(read_metrics(other / stage / "metrics.jsonl"))
    assert offline.id == (other / stage / "wandb_id").read_text().strip()


PLACES: dict[str, tuple[str, Any, str, int, int | None]] = {
    "sft, in a step": ("sft", Trainer, "compute_loss", 7, 7),
    "sft, before its first step": ("sft", Trainer, "get_train_dataloader", 1, 1),
    "reward, in a step": ("reward", reward.trainer.Trainer, "accumulate", 3, 3),
    "reward, in its last samples": ("reward", reward.trainer.Trainer, "score_groups", 1, 5),
    "ppo, measuring the reference": ("ppo", Evaluator, "measure", 1, None),
    "ppo, sampling": ("ppo", ppo.train, "collect", 2, 1),
    "ppo, scoring what it measures on the way": ("ppo", ppo.rollout, "score_tokens", 7, 1),
    "ppo, training": ("ppo", Updater, "accumulate", 10, 2),
    "ppo, saving": ("ppo", checkpoints, "sync_tree", 1, 2),
    "ppo, measuring best-of-n": ("ppo", Evaluator, "best_of_n", 1, 4),
}
"""Where the signal comes: stage, function and its call; and the step that is then saved."""


@pytest.mark.parametrize("place", PLACES)
def test_a_preempted_stage_saves_ends_and_goes_on_to_the_bit(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    stage, owner, name, count, saved = PLACES[place]
    number = signal.SIGUSR1 if "samp" in place else signal.SIGTERM
    copy_stages(
        runs / "micro", tmp_path / "micro", {"sft": (), "reward": ("sft",)}.get(stage, ("sft", "reward"))
    )
    with monkeypatch.context() as patch:
        send = lambda: os.kill(os.getpid(), number)  # noqa: E731
        patch.setattr(owner, name, at_call(count, send, getattr(owner, name)))
        assert start(stage, tmp_path, "ppo.export_merged=true") == 75
    folder = tmp_path / "micro" / stage
    assert not (folder / "manifest.json").exists()
    if saved is None:
        assert not (folder / "checkpoints").exists()
    else:
        assert steps_saved(folder)[-1] == saved
    assert start(stage, tmp_path, "ppo.export_merged=true") == 0
    assert_same_course(runs / "micro", tmp_path / "micro", stage)

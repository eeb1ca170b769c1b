"""A stage that a signal or its own metrics end: what it leaves, and how it resumes from there."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import reward.trainer
from ppo.evaluate import Evaluation, Evaluator
from ppo.rollout import Sampler
from ppo.update import Updater
from rlhf.runs import checkpoints
from rlhf.runs.metrics import read_metrics
from rlhf.runs.stage import require
from sft.resumable import Trainer
from tests.integration.micro import MODEL, assert_same_results, copy_stages, start
from tests.support.wandb_offline import merge_steps, read_offline_run

pytestmark = pytest.mark.slow


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
    """The runs have bitwise the same results; and W&B has what the metrics have."""
    assert_same_results(one, other, stage)
    offline = read_offline_run(other / stage)
    assert offline.history == merge_steps(read_metrics(other / stage / "metrics.jsonl"))
    assert offline.id == (other / stage / "wandb_id").read_text().strip()


PLACES: dict[str, tuple[str, Any, str, int, int | None]] = {
    "sft, in a step": ("sft", Trainer, "compute_loss", 7, 7),
    "reward, in a step": ("reward", reward.trainer.Trainer, "accumulate", 3, 3),
    "reward, in its last samples": ("reward", reward.trainer.Trainer, "score_groups", 1, 5),
    "ppo, evaluating the reference": ("ppo", Evaluator, "evaluate", 1, None),
    "ppo, sampling": ("ppo", Sampler, "sample", 3, 1),
    "ppo, training": ("ppo", Updater, "accumulate", 10, 2),
    "ppo, saving": ("ppo", checkpoints, "sync_tree", 1, 2),
    "ppo, evaluating best-of-n": ("ppo", Evaluator, "best_of_n", 1, 4),
}
"""Where the signal comes: stage, function and its call; and the step that is then saved. The reference's
evaluation samples first, then each iteration."""


@pytest.mark.parametrize("place", PLACES)
def test_a_preempted_stage_saves_ends_and_resumes_bitwise(
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


# Rewards that are not finite.


def write_scorer(folder: Path, returns: str) -> str:
    (folder / "scorer.py").write_text(f"def f(prompts, responses):\n    return {returns}\n")
    return f"ppo.reward={folder / 'scorer.py'}:f"


def test_a_response_without_a_finite_reward_is_left_out_and_counted(runs: Path, tmp_path: Path) -> None:
    copy_stages(runs / "micro", tmp_path / "micro", ["sft"])
    scorer = write_scorer(tmp_path, "[float('nan')] + [float(len(r)) for r in responses[1:]]")
    assert start("ppo", tmp_path, scorer, "ppo.num_iterations=2") == 0
    rows = read_metrics(tmp_path / "micro" / "ppo" / "metrics.jsonl")
    assert [row["ppo/num_unscored_rollouts"] for row in rows if "ppo/num_steps" in row] == [1.0, 1.0]
    assert all(value is not None for row in rows for value in row.values())


def test_rewards_that_stay_not_finite_end_the_run_with_a_good_checkpoint(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_stages(runs / "micro", tmp_path / "micro", ["sft"])
    scorer = write_scorer(tmp_path, "[1.0 if len(prompts) == 8 else float('nan')] * len(prompts)")
    assert start("ppo", tmp_path, scorer) == 2  # the held-out prompts are 8, and an iteration's are 16
    error = capsys.readouterr().err
    assert "3 optimizer steps in a row had a reward, a loss or a gradient that is not finite" in error
    assert "Traceback" not in error
    found = checkpoints.latest(tmp_path / "micro" / "ppo")
    assert found is not None
    assert (found.step, found.state["skipped_steps"]) == (2, 2)
    assert all(bool(tensor.isfinite().all()) for tensor in found.tensors.values())


# Disks.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_costs_nothing(
    runs: Path,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy_stages(runs / "micro", small_disk / "micro")
    common = ("ppo.checkpoint_every_iterations=1", "tracking.wandb=off", "ppo.num_iterations=3")

    def fill_up() -> None:
        left = shutil.disk_usage(small_disk).free - 30_000
        (small_disk / "filler").write_bytes(bytes(left))

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", at_call(3, fill_up, Sampler.sample))
        assert start("ppo", small_disk, *common) == 2
    error = capsys.readouterr().err
    assert "cannot store the results (No space left on device)" in error
    assert "Traceback" not in error
    folder = small_disk / "micro" / "ppo"
    assert steps_saved(folder) == [1]
    (small_disk / "filler").unlink()
    assert start("ppo", small_disk, *common) == 0
    copy_stages(runs / "micro", tmp_path / "micro")
    assert start("ppo", tmp_path, *common) == 0
    weights = [load_file(each / "micro" / "ppo" / MODEL["ppo"]) for each in (small_disk, tmp_path)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


# The best.


def test_the_best_evaluated_policy_can_be_published(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_stages(runs / "micro", tmp_path / "micro")
    golds = iter([0.1, 0.9, 0.2])  # after iterations 1, 2 and 3
    monkeypatch.setattr(Evaluation, "quality", property(lambda evaluation: next(golds)))
    often = ("ppo.evaluation.every_iterations=1", "ppo.num_iterations=3", "ppo.keep_checkpoints=1")
    assert start("ppo", tmp_path, *often, "ppo.publish=best", "ppo.checkpoint_every_iterations=1") == 0
    folder = tmp_path / "micro" / "ppo"
    assert steps_saved(folder) == [2, 3]
    assert require(tmp_path / "micro", "ppo").metrics["published_iteration"] == 2
    kept = [checkpoints.load(folder, step) for step in (2, 3)]
    published = load_file(folder / MODEL["ppo"])
    norms = {round(float(tensor.norm()), 6) for tensor in published.values()}
    of_steps = [
        {
            round(float(tensor.norm()), 6)
            for name, tensor in found.tensors.items()
            if name.startswith("weights.policy.")
        }
        for found in kept
        if found is not None
    ]
    assert norms == of_steps[0] != of_steps[1]

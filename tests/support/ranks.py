"""The reward model and PPO on teams of processes: `python -m tests.support.ranks OUT [CASE ...]`.

Each case of `CASES` trains them on a small model, on one process or on two under the real DeepSpeed, from the
beginning or from another case's checkpoint, and leaves in OUT what came out of it. The test that reads it is
tests/invariant/test_ranks.py.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppo.experience import compute_advantages
from ppo.models import POLICY, build_roles
from ppo.rollout import RolloutScorer, Sampler
from ppo.update import Updater
from reward.trainer import Trainer
from rlhf.model.backbone import Backbone
from rlhf.model.weights import gathered_weights
from rlhf.parallel.start import start_process
from rlhf.parallel.world import world
from rlhf.runs import checkpoints
from rlhf.runs.rank_checkpoints import newest_checkpoint
from rlhf.settings.groups import LoraSettings, ModelSettings, RunSettings
from tests.invariant.test_ppo_properties import TokenReward, ppo_settings, schedule
from tests.support.small import perturb, write_small_model
from tests.support.teams import Case, fork, leave, preload, switch_reduction_off
from tests.unit.reward.groups import random_groups, reward_settings

CASES = {
    "one": Case(1, 0),
    "zero1": Case(2, 1),
    "zero2": Case(2, 2),
    "zero3": Case(2, 3),
    "layers": Case(2, 3),
    "unsynchronized": Case(2, 2),
    "zero2-zero2": Case(2, 2, origin="zero2"),
    "zero3-zero3": Case(2, 3, origin="zero3"),
    "zero2-one": Case(1, 0, origin="zero2"),
    "one-zero2": Case(2, 2, origin="one"),
}
NUM_REWARD_STEPS, REWARD_CUT = 5, 3
NUM_ITERATIONS, PPO_CUT = 3, 2
"""How long a case trains, and after how much of it it leaves a checkpoint."""


def load(folder: Path, max_grad_norm: float) -> Backbone:
    gather = os.environ.get("GATHER", "auto")
    start_process(
        RunSettings.model_validate({"device": "cpu", "gather": gather}), max_grad_norm=max_grad_norm
    )
    return Backbone.load(folder, settings=ModelSettings(path=str(folder)))


def checkpointing(case: str) -> bool:
    """Whether activations are recomputed, which changes no result: where weights are gathered by layers."""
    return case == "layers"


def train_reward(out: Path, case: str) -> None:
    origin = CASES[case].origin
    settings = reward_settings(
        micro_batch_tokens=60, batch_size=7, gradient_checkpointing=checkpointing(case)
    )
    backbone = load(out / "model", settings.max_grad_norm)
    trainer = Trainer(backbone, random_groups(30), settings, seed=4)
    before = weights_of(trainer)
    if origin is not None:
        assert trainer.restore(out / f"reward-{origin}-cut")
    while trainer.next_step < NUM_REWARD_STEPS:
        if trainer.next_step == REWARD_CUT and origin is None:
            trainer.save(out / f"reward-{case}-cut")
        trainer.step()
    scores = trainer.score_groups(trainer.groups[:5])
    finish(out, f"reward-{case}", trainer, before, trainer.window | {"scores": scores})


def train_ppo(out: Path, case: str, *, name: str = "ppo", **changes: Any) -> None:
    settings = ppo_settings(
        value_warmup_iterations=1, num_epochs=1, gradient_checkpointing=checkpointing(case), **changes
    )
    origin = CASES[case].origin
    backbone = load(out / "model", settings.max_grad_norm)
    build_roles(backbone, settings, reward_folder=None, base_sha256="", seed=1)
    perturb(backbone, POLICY, seed=5)
    updater = Updater(backbone, settings, seed=1)
    before = weights_of(updater)
    metrics: dict[str, Any] = {"updates": [], "responses": []}
    if origin is not None:
        found = newest_checkpoint(out / f"{name}-{origin}-cut")
        assert found is not None
        updater.optimization.restore(found.tensors)
    for iteration in range(PPO_CUT if origin else 0, NUM_ITERATIONS):
        if iteration == PPO_CUT and origin is None:
            tensors = updater.optimization.tensors()
            world().run_on_rank0(lambda: checkpoints.save(out / f"{name}-{case}-cut", PPO_CUT, tensors, {}))  # noqa: B023
        requests = schedule(settings).of_iteration(iteration)
        with gathered_weights(backbone):
            sampled = Sampler(backbone, settings, seed=1).sample(requests, role=POLICY)
            scorer = RolloutScorer(backbone, TokenReward(), settings)
            scored = scorer.score(sampled, role=POLICY, for_training=True)
        experience = compute_advantages(scored, settings, kl_coefficient=0.1)
        metrics["updates"].append(updater.update(experience, iteration=iteration))
        metrics["responses"].append(scored.rollouts.response_lists())
    finish(out, f"{name}-{case}", updater, before, metrics)


TRAININGS: dict[str, Callable[[Path, str], None]] = {
    "reward": train_reward,
    "ppo": train_ppo,
    "trunk": functools.partial(train_ppo, name="trunk", lora=LoraSettings(rank=4, alpha=8.0, top_layers=1)),
}
RESUMED = ("reward", "ppo")
"""What also resumes from checkpoints."""


def weights_of(trained: Trainer | Updater) -> dict[str, Tensor]:
    tensors = trained.optimization.tensors()
    start = "weights."
    return {key.removeprefix(start): v.clone() for key, v in tensors.items() if key.startswith(start)}


def finish(
    out: Path, name: str, trained: Trainer | Updater, before: dict[str, Tensor], metrics: dict[str, Any]
) -> None:
    """Leave what the training made, what took its steps, and whether its state can be put back."""
    tensors = {key: value.detach().clone() for key, value in trained.optimization.tensors().items()}
    trained.optimization.restore(tensors)
    again = trained.optimization.tensors()
    metrics["restored"] = all(torch.equal(value, again[key]) for key, value in tensors.items())
    engine = getattr(trained.optimization, "_engine", None)
    metrics["engine"] = None if engine is None else type(engine.optimizer).__name__
    leave(out, name, before, tensors, metrics)


def work(train: Callable[[Path, str], None], out: Path, case: str) -> None:
    """What a rank does in a case."""
    if case == "unsynchronized":
        switch_reduction_off()
    if case == "layers":
        os.environ["GATHER"] = "layers"
    train(out, case)


def main(out: Path, names: list[str]) -> None:
    """Work through the named cases, or all."""
    preload()
    write_small_model(out / "model")
    for case in names or list(CASES):
        size, zero, origin = CASES[case]
        for trained, train in TRAININGS.items():
            if origin is None or trained in RESUMED:
                fork(size, zero, functools.partial(work, train, out, case))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

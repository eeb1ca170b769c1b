"""Teams of real processes over gloo, forked from one that has imported all: `python -m tests.ranks OUT`.

Each case of `CASES` trains the reward model and PPO on a small model, on one process or on two under the real
DeepSpeed, and leaves in OUT what came out of it. The test that reads it is tests/invariant/test_ranks.py.
"""

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ppo.models import POLICY, build_roles
from ppo.rollout import collect, experience, schedule_prompts, score_values
from ppo.update import Updater
from reward.trainer import Trainer
from rlhf import distributed
from rlhf.backbone import Backbone
from rlhf.config import LoraSettings, ModelSettings, RunSettings
from rlhf.distributed import Team, start_process, team, whole_weights
from tests.invariant.test_ppo_properties import PROMPTS, TokenReward, ppo_settings
from tests.small import perturb, write_small_model
from tests.unit.reward.groups import random_groups, reward_settings

CASES = {
    "one": (1, 0),
    "zero1": (2, 1),
    "zero2": (2, 2),
    "zero3": (2, 3),
    "layers": (2, 3),
    "unsynchronized": (2, 2),
}
"""Name → number of processes and ZeRO stage."""
NUM_ITERATIONS, NUM_REWARD_STEPS = 3, 5


def fork(size: int, zero: int, work: Callable[[], None]) -> None:
    """Run `work` on every rank of a new team, and see that none of them failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [os.fork() or _child(rank, size, zero, port, work) for rank in range(size)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0] * size, f"ZeRO-{zero}: the ranks ended with {statuses}"


def _child(rank: int, size: int, zero: int, port: int, work: Callable[[], None]) -> int:
    try:
        if zero:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(zero),
            }
        distributed._team = Team()
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def load(folder: Path, max_grad_norm: float) -> Backbone:
    gather = os.environ.get("GATHER", "auto")
    start_process(
        RunSettings.model_validate({"device": "cpu", "gather": gather}), max_grad_norm=max_grad_norm
    )
    return Backbone.load(folder, settings=ModelSettings(path=str(folder)))


def train_reward(model: Path, out: Path, name: str) -> None:
    settings = reward_settings(micro_batch_tokens=60, batch_size=7)
    backbone = load(model, settings.max_grad_norm)
    trainer = Trainer(backbone, random_groups(30), settings, seed=4)
    before = weights_of(trainer)
    for _ in range(NUM_REWARD_STEPS):
        trainer.step()
    scores = trainer.score_groups(trainer.groups[:5])
    figures = trainer.window | {"scores": scores, "engine": engine_of(trainer)}
    leave(out, f"reward-{name}", trainer, before, figures)


def train_ppo(model: Path, out: Path, name: str, **changes: Any) -> None:
    settings = ppo_settings(value_warmup_iterations=1, **changes)
    backbone = load(model, settings.max_grad_norm)
    build_roles(backbone, settings, reward_folder=None, base_sha256="", seed=1)
    perturb(backbone, POLICY, seed=5)
    updater = Updater(backbone, settings, seed=1)
    before = weights_of(updater)
    figures: dict[str, Any] = {"updates": [], "responses": [], "engine": engine_of(updater)}
    for iteration in range(NUM_ITERATIONS):
        indices, keys = schedule_prompts(len(PROMPTS), iteration, settings, seed=1)
        with whole_weights(backbone):
            sampled = collect(
                backbone, PROMPTS.take(indices), keys, TokenReward(), settings, role=POLICY, seed=1
            )
            values_BT = score_values(backbone, sampled.own, settings)
        values_BT = team().merge_rows(values_BT, len(keys))
        batch, _ = experience(sampled, values_BT, settings, kl_coefficient=0.1)
        figures["updates"].append(updater.update(batch, iteration=iteration))
        figures["responses"].append(sampled.rollouts.response_lists())
    leave(out, name, updater, before, figures)


def weights_of(trained: Trainer | Updater) -> dict[str, Tensor]:
    tensors = trained.optimization.tensors()
    return {key: value.clone() for key, value in tensors.items() if key.startswith("weights.")}


def engine_of(trained: Trainer | Updater) -> str | None:
    """The type of DeepSpeed's optimizer that takes the steps, if it does."""
    engine = getattr(trained.optimization, "_engine", None)
    return None if engine is None else type(engine.optimizer).__name__


def leave(
    out: Path, name: str, trained: Trainer | Updater, before: dict[str, Tensor], figures: dict[str, Any]
) -> None:
    """Write weights before and after, AdamW's state and the figures; put back the state that was read."""
    tensors = {key: value.detach().clone() for key, value in trained.optimization.tensors().items()}
    trained.optimization.restore(tensors)
    again = trained.optimization.tensors()
    figures["restored"] = all(torch.equal(value, again[key]) for key, value in tensors.items())
    figures["rank"] = team().rank
    if team().is_first:
        save_file(
            tensors | {f"before.{key}": value for key, value in before.items()}, out / f"{name}.safetensors"
        )
        (out / f"{name}.json").write_text(json.dumps(figures))
    elif team().size > 1:
        (out / f"{name}.rank{team().rank}.json").write_text(json.dumps(figures))


def main(out: Path, names: list[str]) -> None:
    model = out / "model"
    write_small_model(model)
    top = LoraSettings(rank=4, alpha=8.0, top_layers=1)
    for name in names or list(CASES):
        size, zero = CASES[name]

        def work(train: Callable[..., None], label: str, **changes: Any) -> Callable[[], None]:
            def run() -> None:
                if name == "unsynchronized":  # noqa: B023
                    switch_reduction_off()
                if name == "layers":  # noqa: B023
                    os.environ["GATHER"] = "layers"
                train(model, out, label, **changes)

            return run

        fork(size, zero, work(train_reward, name))
        fork(size, zero, work(train_ppo, f"ppo-{name}"))
        fork(size, zero, work(train_ppo, f"trunk-{name}", lora=top))


def switch_reduction_off() -> None:
    """Let every rank keep its own gradients where DeepSpeed would add up all ranks'."""
    import deepspeed

    for name in ("all_reduce", "reduce"):
        setattr(deepspeed.comm, name, lambda tensor, *args, **kwargs: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""All stages on teams of real processes, stopped and resumed: `python -m tests.resume_ranks OUT`.

Each case trains a small model and leaves in OUT its weights before and after, and what took the steps; at
step CUT it also leaves a checkpoint, which other cases begin with. The test that reads it all is
tests/invariant/test_resume_ranks.py.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ppo.models import POLICY, build_roles
from ppo.rollout import collect, experience, schedule_prompts, score_values
from ppo.update import Updater
from reward.trainer import Trainer as RewardTrainer
from rlhf import checkpoints
from rlhf.checkpoints import Checkpoint
from rlhf.config import RunSettings
from rlhf.cut_weights import assemble
from rlhf.distributed import start_process, team, whole_weights
from rlhf.gathering import gathered
from sft.trainer import Trainer as SFTTrainer
from tests.invariant.test_ppo_properties import PROMPTS, TokenReward, ppo_settings
from tests.ranks import fork, load, switch_reduction_off
from tests.small import perturb, write_small_model
from tests.unit.reward.groups import random_groups, reward_settings
from tests.unit.sft.demos import Log, poison, random_examples, sft_settings, small_start, trainer

CUT = 3
"""After so many steps (iterations, in PPO) a case leaves its checkpoint."""

TEAMS: dict[str, tuple[int, int, str | None]] = {
    "one": (1, 0, None),
    "two": (2, 2, None),
    "two-two": (2, 2, "two"),
    "two-one": (1, 0, "two"),
    "one-two": (2, 2, "one"),
}
"""Case of every stage → number of processes, ZeRO stage, and whose checkpoint it begins with."""
SFT_TEAMS = {"zero1": (2, 1, None), "zero3": (2, 3, None), "zero3-zero3": (2, 3, "zero3")} | {
    "unsynchronized": (2, 2, None),
    "one-rank-fails": (2, 3, None),
}


def found_in(out: Path, stage: str, origin: str | None) -> Checkpoint | None:
    """The checkpoint that the case `origin` has left."""
    return None if origin is None else checkpoints.latest(out / f"{stage}-{origin}-cut")


def leave(out: Path, name: str, before: dict[str, Any], after: dict[str, Any], **figures: Any) -> None:
    """Write, on rank 0, the weights before and after, and figures."""
    if team().is_first:
        tensors = {f"before.{key}": value for key, value in before.items()}
        tensors |= {f"after.{key}": value.detach().clone().contiguous() for key, value in after.items()}
        save_file(tensors, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(figures))


def weights(trained: RewardTrainer | Updater) -> dict[str, Any]:
    tensors = trained.optimization.tensors()
    return {key: value.clone() for key, value in tensors.items() if key.startswith("weights.")}


def train_sft(out: Path, case: str, origin: str | None) -> None:
    """Two epochs of 21 examples in steps of 8: two processes need a dummy row in the last step of each."""
    settings = sft_settings(micro_batch_size=3, checkpoint_every_steps=CUT, keep_checkpoints=9)
    start_process(RunSettings(device="cpu"), max_grad_norm=settings.max_grad_norm)
    begin, log, folder = small_start(out, settings), Log(), out / f"sft-{case}"
    built: SFTTrainer = trainer(
        folder, settings, random_examples(21), begin=begin, log=log, log_every_steps=4
    )
    with gathered(built.named.values()):
        before = {name: value.detach().clone() for name, value in built.named.items()}
    found = found_in(out, "sft", origin)
    if found is not None:
        built.go_on_from(found)
    if case == "one-rank-fails" and team().rank:
        poison(built, {2})
    built.train()
    engine = built._engine
    optimizer = None if engine is None else type(engine._engine.optimizer).__name__
    trained: Any = built.trained_model()
    assemble(trained)
    after = {name: value for name, value in trained.named_parameters() if name in before}
    if team().is_first and found is None:
        cut = out / f"sft-{case}-cut" / "checkpoints" / f"step-{CUT:06d}"
        shutil.copytree(folder / "checkpoints" / cut.name, cut, dirs_exist_ok=True)
    figures = [[step, {k: v for k, v in row.items() if "per_second" not in k}] for step, row in log.rows]
    leave(
        out,
        f"sft-{case}",
        before,
        after,
        optimizer=optimizer,
        rows=figures,
        skipped=built.guard.skipped_steps,
    )


def train_reward(out: Path, case: str, origin: str | None) -> None:
    settings = reward_settings(micro_batch_tokens=60, batch_size=7)
    trained = RewardTrainer(load(out / "model", settings.max_grad_norm), random_groups(30), settings, seed=4)
    before = weights(trained)
    if origin is not None:
        assert trained.restore(out / f"reward-{origin}-cut")
    while trained.next_step < 5:
        if trained.next_step == CUT and origin is None:
            trained.save(out / f"reward-{case}-cut")
        trained.step()
    leave(out, f"reward-{case}", before, weights(trained), window=trained.window)


def train_ppo(out: Path, case: str, origin: str | None) -> None:
    settings = ppo_settings(value_warmup_iterations=1)
    backbone = load(out / "model", settings.max_grad_norm)
    build_roles(backbone, settings, reward_folder=None, base_sha256="", seed=1)
    perturb(backbone, POLICY, seed=5)
    updater = Updater(backbone, settings, seed=1)
    before = weights(updater)
    found = found_in(out, "ppo", origin)
    if found is not None:
        updater.optimization.restore(found.tensors)
    updates, responses = [], []
    for iteration in range(CUT if found else 0, CUT + 2):
        if iteration == CUT and found is None:
            tensors = updater.optimization.tensors()
            team().lead(lambda: checkpoints.save(out / f"ppo-{case}-cut", CUT, tensors, {}))  # noqa: B023
        indices, keys = schedule_prompts(len(PROMPTS), iteration, settings, seed=1)
        prompts = PROMPTS.take(indices)
        with whole_weights(backbone):
            sampled = collect(backbone, prompts, keys, TokenReward(), settings, role=POLICY, seed=1)
            values_BT = score_values(backbone, sampled.own, settings)
        values_BT = team().merge_rows(values_BT, len(keys))
        batch, _ = experience(sampled, values_BT, settings, kl_coefficient=0.1)
        updates.append(updater.update(batch, iteration=iteration))
        responses.append(sampled.rollouts.response_lists())
    leave(out, f"ppo-{case}", before, weights(updater), updates=updates, responses=responses)


STAGES: dict[str, Callable[[Path, str, str | None], None]] = {
    "sft": train_sft,
    "reward": train_reward,
    "ppo": train_ppo,
}


def main(out: Path, names: list[str]) -> None:
    """Work through the named cases, or all."""
    write_small_model(out / "model")
    small_start(out, sft_settings())
    for stage, train in STAGES.items():
        for case, (size, zero, origin) in (TEAMS | (SFT_TEAMS if stage == "sft" else {})).items():

            def work(case: str = case, origin: str | None = origin) -> None:
                if case == "unsynchronized":
                    switch_reduction_off()
                train(out, case, origin)  # noqa: B023

            if not names or f"{stage}-{case}" in names:
                fork(size, zero, work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]), sys.argv[2:])

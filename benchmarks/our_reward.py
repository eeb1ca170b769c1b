"""Our racer in reward training: the stage's own `reward.trainer.Trainer`, with clocks around it."""

import sys
from pathlib import Path
from typing import cast

import torch
import transformers.models.llama.modeling_llama  # noqa: F401  loads with the first model otherwise

from benchmarks.fixtures import read_groups
from benchmarks.jobs import Job, Result
from benchmarks.laps import Laps
from benchmarks.memory import PeakMemory
from benchmarks.racer import race, read_recipe
from reward.config import RewardSettings
from reward.evaluate import evaluate
from reward.trainer import Trainer
from rlhf.model.backbone import Backbone
from rlhf.runs.manifest import package_versions


def run(job: Job) -> Result:
    """Train on the groups, or on the first of them, and measure on the held-out ones."""
    memory = PeakMemory(job.device)
    settings = cast(RewardSettings, read_recipe(job).section("reward"))
    train, held_out = read_groups(Path(job.run_folder))
    backbone = Backbone.load(Path(job.run_folder) / "sft" / "model", device=job.device)
    trainer = Trainer(backbone, train, settings, seed=job.seed)
    num_steps = min(trainer.num_steps, job.max_laps or trainer.num_steps)
    laps = Laps(job.device)
    laps.start()
    for _ in range(num_steps):
        trainer.step()
        laps.lap()
    laps.close()
    trained = memory.take()
    metrics = evaluate(
        held_out, trainer.score_groups(held_out), tie_margin=settings.tie_margin, gold=None, seed=0
    )
    return Result(
        racer=job.racer,
        laps=laps.laps,
        num_warmup_laps=job.num_warmup_laps,
        memory=trained,
        threads=torch.get_num_threads(),
        device=str(backbone.device),
        num_base_parameters=sum(
            p.numel() for name, p in backbone.model.named_parameters() if ".lora_" not in name
        ),
        trainable_parameters={"reward": sum(p.numel() for p in trainer.named.values())},
        versions=package_versions(),
        metrics=metrics,
    )


if __name__ == "__main__":
    sys.exit(race(run, sys.argv[1:]))

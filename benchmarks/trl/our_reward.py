"""Our racer in reward training: the stage's own `reward.trainer.Trainer`, with clocks around it."""

import sys
from pathlib import Path
from typing import cast

import transformers.models.llama.modeling_llama  # noqa: F401  loads with the first model otherwise

from benchmarks.memory import PeakMemory
from benchmarks.trl.fixtures import read_groups
from benchmarks.trl.jobs import Job, Result
from benchmarks.trl.laps import Laps
from benchmarks.trl.racer import num_base_parameters, race, read_recipe, result_of
from reward.config import RewardSettings
from reward.evaluate import evaluate
from reward.trainer import Trainer
from rlhf.model.backbone import Backbone


def run(job: Job) -> Result:
    """Train on the groups, or on the first of them, and evaluate on the held-out ones."""
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
    return result_of(
        job,
        laps,
        trained,
        backbone.device,
        num_base_parameters=num_base_parameters(backbone.model),
        trainable_parameters={"reward": sum(p.numel() for p in trainer.named.values())},
        figures=metrics,
    )


if __name__ == "__main__":
    sys.exit(race(run, sys.argv[1:]))

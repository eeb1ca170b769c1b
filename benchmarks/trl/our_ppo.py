"""Our racer in PPO: the stage's own class, `ppo.train.PPO`, with clocks around it."""

import sys
from pathlib import Path
from typing import Any, cast

import transformers.models.llama.modeling_llama  # noqa: F401  loads with the first model otherwise

import ppo.rollout
import ppo.update
from benchmarks.clock import clock
from benchmarks.memory import PeakMemory
from benchmarks.trl.jobs import Job, Result
from benchmarks.trl.laps import OTHER, Laps, Parts
from benchmarks.trl.racer import num_base_parameters, race, read_recipe, result_of
from benchmarks.trl.snapshots import Snapshots
from ppo.config import PPOSettings
from ppo.models import POLICY, VALUE
from ppo.rollout import RolloutScorer, Sampled, Sampler
from ppo.train import PPO
from rlhf.runs.tracker import Tracker

PARTS = (
    (ppo.rollout, "sample", "sampling"),
    (ppo.rollout, "responses_text", OTHER),
    (RolloutScorer, "score", "scoring"),
    (ppo.update.Updater, "update", "training"),
)
"""What an iteration calls, and the part of the breakdown that its time belongs to."""


class Lengths:
    """Notes the length of every response that is sampled in training."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.num_ended = 0

    def listen(self) -> None:
        sample = Sampler.sample

        def noted(*args: Any, **kwargs: Any) -> Sampled:
            sampled = sample(*args, **kwargs)
            self.tokens += sampled.rollouts.response_lengths_B.tolist()
            self.num_ended += int(sampled.rollouts.ended_B.sum())
            return sampled

        Sampler.sample = noted  # type: ignore[method-assign]


def run(job: Job) -> Result:
    """Train for the recipe's number of iterations."""
    memory = PeakMemory(job.device)
    recipe = read_recipe(job)
    settings = cast(PPOSettings, recipe.section("ppo"))
    stage = PPO(recipe, settings)
    parts = Parts(clock(job.device))
    lengths = Lengths()
    for owner, name, part in PARTS:
        parts.wrap(owner, name, part)
    lengths.listen()
    laps = Laps(job.device, parts=parts)
    snapshots = Snapshots(job, laps, settings)
    with Tracker(recipe, "ppo", Path(job.output), resume_step=None) as tracker:
        laps.start()
        for iteration in range(1, settings.num_iterations + 1):
            tracker.log(stage.iterate(tracker), step=iteration)
            laps.lap()
            if snapshots.is_due(iteration):
                with laps.paused():
                    _keep_policy(stage, snapshots.add(iteration))
    backbone = stage.backbone
    return result_of(
        job,
        laps,
        memory.take(),
        backbone.device,
        num_base_parameters=num_base_parameters(backbone.model),
        trainable_parameters={
            role: sum(p.numel() for p in backbone.role_parameters(role).values()) for role in (POLICY, VALUE)
        },
        response_tokens=lengths.tokens,
        num_ended=lengths.num_ended,
        snapshots=snapshots.taken,
    )


def _keep_policy(stage: PPO, folder: Path) -> None:
    stage.backbone.export_adapter(POLICY, folder, task_type="CAUSAL_LM", base_path="sft/model")


if __name__ == "__main__":
    sys.exit(race(run, sys.argv[1:]))

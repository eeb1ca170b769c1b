"""Evaluates kept policies of any racer with the PPO stage's own evaluator, on held-out prompts."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from benchmarks.trl.jobs import Curve, CurvePoint, Job, Result
from benchmarks.trl.racer import read_recipe
from benchmarks.trl.snapshots import put_on
from ppo.config import PPOSettings
from ppo.evaluate import Evaluator
from ppo.models import POLICY
from ppo.train import PPO
from rlhf.model.backbone import REFERENCE


def judge(job: Job, result: Result) -> Curve:
    """The reference at zero cost, then every kept policy, all on the same prompts with the same noise."""
    recipe = read_recipe(job)
    stage = PPO(recipe, cast(PPOSettings, recipe.section("ppo")))
    points = [_point(stage.evaluator, REFERENCE, iteration=0, num_samples=0, wall=0.0, cpu=0.0)]
    for kept in result.snapshots:
        put_on(stage.backbone, POLICY, Path(kept.folder))
        points.append(
            _point(
                stage.evaluator,
                POLICY,
                iteration=kept.iteration,
                num_samples=kept.num_samples,
                wall=kept.wall_seconds,
                cpu=kept.cpu_seconds,
            )
        )
    return Curve(racer=job.racer, seed=job.seed, num_prompts=len(stage.evaluator.prompts), points=points)


def _point(
    evaluator: Evaluator, role: str, *, iteration: int, num_samples: int, wall: float, cpu: float
) -> CurvePoint:
    evaluation = evaluator.evaluate(role)
    metrics = evaluation.metrics
    return CurvePoint(
        iteration=iteration,
        num_samples=num_samples,
        wall_seconds=wall,
        cpu_seconds=cpu,
        gold=metrics["gold_mean"],
        kl_nats=metrics["kl_nats_per_response"],
        figures=metrics,
        golds=evaluation.gold or [],
        kls_nats=evaluation.scored.kl_B.tolist(),
    )


def main(argv: Sequence[str]) -> int:
    """Judge the result `argv[1]` of the job `argv[0]` and write the curve to `argv[2]`."""
    job = Job.read(Path(argv[0]))
    torch.set_num_threads(job.threads)
    curve = judge(job, Result.read(Path(argv[1])))
    Path(argv[2]).write_text(curve.to_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

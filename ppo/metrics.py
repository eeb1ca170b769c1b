"""The numbers that PPO reports: of an iteration, and of the whole stage. docs/metrics.md defines each."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from ppo.config import PPOSettings
from ppo.evaluate import Evaluation
from ppo.experience import Experience, final_scores
from ppo.kl import k3
from ppo.rollout import Scored
from rlhf.parallel.world import world
from rlhf.statistics.masked import masked_mean, masked_variance


class IterationTimer:
    """How long an iteration takes, and how much CPU time its rollouts."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._cpu_seconds = 0.0

    @contextlib.contextmanager
    def rollouts(self) -> Iterator[None]:
        """Around sampling and scoring."""
        started = time.process_time()
        yield
        self._cpu_seconds = time.process_time() - started

    def metrics(self) -> dict[str, float]:
        """Seconds since the beginning, and the CPU time of all ranks together."""
        cpu = world().sum({"rollout_cpu_seconds": self._cpu_seconds})
        return cpu | {"iteration_seconds": time.perf_counter() - self._started}


def named(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names that they are logged by."""
    return {f"ppo/{name}": value for name, value in metrics.items()}


def named_held_out(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation's metrics under the names that they are logged by."""
    return {f"ppo/heldout_{name}": value for name, value in evaluation.metrics.items()}


def describe(scored: Scored, experience: Experience, settings: PPOSettings) -> dict[str, float]:
    """An iteration's metrics that are known before its updates."""
    rollouts = experience.rollouts
    mask_BT = rollouts.response_mask_BT
    values_BT, returns_BT = experience.old_values_BT, experience.returns_BT
    unexplained = masked_variance(returns_BT - values_BT, mask_BT)
    explained = 1 - unexplained / masked_variance(returns_BT, mask_BT).clamp(min=1e-12)
    k3_BT = k3(scored.logprobs_BT, scored.reference_logprobs_BT)
    return {
        "reward_mean": float(final_scores(scored, settings).mean()),
        "reward_std": float(scored.scores_B.std(correction=0)),
        "kl_nats_per_response": float(scored.kl_B.mean()),
        "kl_k3_nats_per_response": float(torch.where(mask_BT, k3_BT, 0).sum(1).mean()),
        "response_tokens_mean": float(rollouts.response_lengths_B.float().mean()),
        "eos_rate": float(rollouts.ended_B.float().mean()),
        "entropy": float(masked_mean(rollouts.sampled_entropy_BT, mask_BT)),
        "value_mean": float(masked_mean(values_BT, mask_BT)),
        "value_explained_variance": float(explained),
        "advantage_std": float(masked_variance(experience.raw_advantages_BT, mask_BT).sqrt()),
        "sampler_gap_nats_max": float(scored.sampler_gap_N.max()),
        "sampler_gap_nats_mean": float(scored.sampler_gap_N.mean()),
    }


def summary(
    before: Evaluation, after: Evaluation, best: dict[int, dict[str, float]], settings: PPOSettings
) -> dict[str, float]:
    """The stage's final metrics, for the manifest and the last line of `metrics.jsonl`."""
    metrics = {f"before_{name}": value for name, value in before.metrics.items()}
    metrics |= {f"after_{name}": value for name, value in after.metrics.items()}
    for n, values in best.items():
        metrics |= {f"best_of_{n}_{name}": value for name, value in values.items()}
    ceiling = settings.evaluation.gold_best
    if ceiling is not None and "gold_mean" in before.metrics and "gold_mean" in after.metrics:
        gap = ceiling - before.metrics["gold_mean"]
        gained = after.metrics["gold_mean"] - before.metrics["gold_mean"]
        metrics["gold_gap_closed"] = gained / max(gap, 1e-12)
    assert np.isfinite(list(metrics.values())).all()
    return metrics


def report(before: Evaluation, after: Evaluation, best: dict[int, dict[str, float]]) -> list[tuple[str, str]]:
    """The final metrics as the rows that are printed at the end of the stage."""
    rows: list[tuple[str, str]] = []
    for name in dict.fromkeys((*before.metrics, *after.metrics)):
        # Responses that were left out are worth a line only where there were any.
        if not name.startswith("num_") or before.metrics[name] or after.metrics[name]:
            rows.append((name, f"{_shown(before, name)} → {_shown(after, name)}"))
    for n, values in best.items():
        rows.append((f"best of {n}", ", ".join(f"{name} {value:.3f}" for name, value in values.items())))
    return rows


def _shown(evaluation: Evaluation, name: str) -> str:
    return f"{evaluation.metrics[name]:.3f}" if name in evaluation.metrics else "none"

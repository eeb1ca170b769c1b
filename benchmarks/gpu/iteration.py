"""Whole iterations of PPO on a random base: seconds and peak memory of sampling, scoring and training.

Used by the parts `memory-7b`, `largest` and `iteration`.
"""

from statistics import median
from typing import Any

import torch

from benchmarks.base_model import base_bytes
from benchmarks.clock import clock
from benchmarks.gpu.models import Engine, add_roles, random_base, random_prompts
from benchmarks.gpu.plan import Case
from ppo.experience import compute_advantages
from ppo.models import POLICY
from ppo.prompts import PromptSchedule, PromptSet
from ppo.rollout import RolloutScorer, Sampler

MIB = 2**20
PHASES = ("sampling", "scoring", "training")


class Phases:
    """Seconds and peak device memory of phases that follow one another."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_mib: dict[str, float | None] = {}
        self.reserved_mib: dict[str, float | None] = {}
        """What the allocator held of the device at most, its cache included."""
        self._now = clock(device)
        self._on_device = device == "cuda"
        self._start()

    def end(self, name: str) -> None:
        """The phase that ends here, after all that it started on the device, was `name`."""
        self.seconds[name] = self._now() - self._since
        self.peak_mib[name] = torch.cuda.max_memory_allocated() / MIB if self._on_device else None
        self.reserved_mib[name] = torch.cuda.max_memory_reserved() / MIB if self._on_device else None
        self._start()

    def _start(self) -> None:
        if self._on_device:
            torch.cuda.reset_peak_memory_stats()
        self._since = self._now()


def run(case: Case) -> dict[str, Any]:
    """The case's iterations; raises whatever a device raises that is too small."""
    phases = Phases(case.device)
    backbone = random_base(case.shape, case.precision, device=case.device, seed=case.seed)
    phases.end("base")
    engine = add_roles(backbone, case)
    phases.end("roles")
    prompts = random_prompts(case.shape, [case.workload.prompt_tokens] * case.workload.rollouts, seed=1)
    laps = [iterate(engine, prompts, number) for number in range(case.num_warmup_laps + case.num_laps)]
    return {
        "shape": case.shape.name,
        "precision": case.precision,
        "parameters": case.shape.num_parameters,
        "base_mib": base_bytes(backbone) / MIB,
        "set_up": {"seconds": phases.seconds, "peak_mib": phases.peak_mib},
        "gradient_checkpointing": case.gradient_checkpointing,
        "workload": case.workload.model_dump(),
        "iterations": laps,
        **summary(laps[case.num_warmup_laps :]),
    }


def iterate(engine: Engine, prompts: PromptSet, iteration: int) -> dict[str, Any]:
    """One iteration, as `ppo.train.PPO.iterate` goes about it; its phases and metrics."""
    settings = engine.settings
    seed = engine.case.seed
    backbone = engine.backbone
    updater = engine.updater
    schedule = PromptSchedule(prompts, settings.rollouts_per_iteration, settings.samples_per_prompt, seed)
    requests = schedule.of_iteration(iteration)
    phases = Phases(engine.case.device)
    sampled = Sampler(backbone, settings, seed).sample(requests, role=POLICY)
    phases.end("sampling")
    scorer = RolloutScorer(backbone, engine.reward, settings)
    scored = scorer.score(sampled, role=POLICY, for_training=True)
    experience = compute_advantages(scored, settings, kl_coefficient=settings.kl.coefficient)
    phases.end("scoring")
    metrics = updater.update(experience, iteration=iteration)
    phases.end("training")
    return {
        "seconds": phases.seconds,
        "peak_mib": phases.peak_mib,
        "reserved_mib": phases.reserved_mib,
        "response_tokens": int(sampled.rollouts.response_lengths_B.sum()),
        "figures": metrics,
    }


def summary(laps: list[dict[str, Any]]) -> dict[str, Any]:
    """Median seconds and highest peak of every phase, and of a whole iteration."""
    seconds: dict[str, float] = {}
    peaks: dict[str, float | None] = {}
    for name in PHASES:
        seconds[name] = median(lap["seconds"][name] for lap in laps)
        peaks[name] = _highest([lap["peak_mib"][name] for lap in laps])
    whole = [sum(lap["seconds"].values()) for lap in laps]
    return {
        "seconds": {**seconds, "iteration": median(whole)},
        "peak_mib": {**peaks, "iteration": _highest(list(peaks.values()))},
        "reserved_mib": _highest([each for lap in laps for each in lap["reserved_mib"].values()]),
        "response_tokens_per_second": median(
            lap["response_tokens"] / each for lap, each in zip(laps, whole, strict=True)
        ),
    }


def _highest(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None

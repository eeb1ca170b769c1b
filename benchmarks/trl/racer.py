"""What every racer's process begins and ends with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.memory import Memory
from benchmarks.trl.jobs import Job, Result
from benchmarks.trl.laps import Laps
from rlhf.runs.manifest import package_versions
from rlhf.settings.recipe import Recipe, load_recipe


def race(run: Callable[[Job], Result], argv: Sequence[str]) -> int:
    """Run the job in the file `argv[0]` and write what came out to `argv[1]`."""
    job = Job.read(Path(argv[0]))
    torch.set_num_threads(job.threads)
    Path(job.output).mkdir(parents=True, exist_ok=True)
    result = run(job)
    assert torch.get_num_threads() == result.threads == job.threads, "another number of threads came about"
    Path(argv[1]).write_text(result.to_json(), encoding="utf-8")
    return 0


def read_recipe(job: Job) -> Recipe:
    """The recipe with the job's own settings."""
    return load_recipe(job.recipe, job.overrides)


def result_of(job: Job, laps: Laps, memory: Memory, device: object, **found: Any) -> Result:
    """What every racer tells, with what this one has found besides."""
    return Result(
        racer=job.racer,
        laps=laps.laps,
        num_warmup_laps=job.num_warmup_laps,
        memory=memory,
        threads=torch.get_num_threads(),
        device=str(device),
        versions=package_versions(),
        **found,
    )


def num_base_parameters(model: nn.Module) -> int:
    """Parameters of the base: neither an adapter's nor a score head's."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".lora_" not in name and "score" not in name
    )

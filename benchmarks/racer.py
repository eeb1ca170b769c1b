"""What every racer's process begins and ends with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.jobs import Job, Result
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

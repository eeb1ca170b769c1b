"""Interleaved rounds: every racer in a process of its own, all of them once a round."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, environment, file_name, last_lines
from benchmarks.trl.jobs import Job, Result

OUR_PPO = "benchmarks.trl.our_ppo"
PEER_PPO = "benchmarks.trl.peer_ppo"
OUR_REWARD = "benchmarks.trl.our_reward"
PEER_REWARD = "benchmarks.trl.peer_reward"


@dataclass(frozen=True)
class Racer:
    """A module that reads a job and writes a result, and what must be on its path."""

    module: str
    job: Job
    path: Path | None = None


Round = Mapping[str, Result]
"""Racer → what it measured."""


def run_rounds(racers: Sequence[Racer], num_rounds: int, *, folder: Path, seed: int) -> list[Round]:
    """Run every racer once a round, in turn forwards and backwards; round r has seed `seed` + r."""
    rounds: list[Round] = []
    for number in range(num_rounds):
        order = racers if number % 2 == 0 else list(reversed(racers))
        done = {}
        for racer in order:
            job = with_seed(racer.job, seed + number)
            print(f"  round {number + 1} of {num_rounds}: {job.racer} ... ", end="", flush=True)
            result = run_racer(racer, job, folder / f"round-{number + 1}")
            print(f"{result.wall_seconds_per_lap:.2f} s a lap", flush=True)
            done[job.racer] = result
        rounds.append({racer.job.racer: done[racer.job.racer] for racer in racers})
    return rounds


def with_seed(job: Job, seed: int) -> Job:
    """The job under another seed, with a folder of its own for it."""
    return job.model_copy(
        update={
            "seed": seed,
            "overrides": [*job.overrides, f"run.seed={seed}"],
            "output": f"{job.output}-{seed}",
        }
    )


def run_racer(racer: Racer, job: Job, folder: Path) -> Result:
    """Run one job in a process of its own and wait for it.

    Raises:
        RuntimeError: the racer failed; the message ends with what it said last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name(job.racer)
    job_file = folder / f"{name}.job.json"
    result_file = folder / f"{name}.result.json"
    log_file = folder / f"{name}.log"
    job_file.write_text(job.to_json(), encoding="utf-8")
    result_file.unlink(missing_ok=True)
    with log_file.open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", racer.module, str(job_file), str(result_file)],
            cwd=ROOT,
            env=environment(job.threads, racer.path),
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode or not result_file.exists():
        failure = f"{job.racer} failed with status {done.returncode} ({log_file})"
        raise RuntimeError(f"{failure}:\n{last_lines(log_file)}")
    return Result.read(result_file)

"""One case of `benchmarks.gpu` in a process of its own: reads a case, writes an answer."""

import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import checks, decode, iteration
from benchmarks.gpu.out_of_memory import is_out_of_memory
from benchmarks.gpu.plan import Answer, Case
from benchmarks.trl.peer_install import install_peer
from benchmarks.trl.suite import Options, race_ppo
from rlhf.commands.process import run_command
from rlhf.errors import UserError
from rlhf.runs.manifest import json_value, package_versions

_PEER_NEEDS = ("datasets", "accelerate")
"""Beside what we need too; TRL itself is installed where only its own process sees it."""


def main(argv: Sequence[str]) -> int:
    """Run the case in the file `argv[0]` and write what came out to `argv[1]`."""
    case = Case.read(Path(argv[0]))
    torch.set_num_threads(case.threads)
    Path(argv[1]).write_text(answer(case).to_json(), encoding="utf-8")
    return 0


def answer(case: Case) -> Answer:
    """Do the case's work, if what it needs is here and fits."""
    if (lack := missing(case)) is not None:
        return Answer(status="left out", error=lack)
    try:
        return Answer(status="done", result=json_value(WORK[case.part](case)))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return Answer(status="out of memory", error=str(error))


def missing(case: Case) -> str | None:
    """What the case needs and this environment does not have."""
    needed = [*_PEER_NEEDS] if case.part == "race" else []
    needed += ["bitsandbytes"] if case.precision in ("int8", "nf4") else []
    for package in needed:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed."
    if case.part == "race":
        try:
            install_peer(Path(case.build).resolve())
        except UserError as error:
            return str(error)
    return None


def describe_device(case: Case) -> dict[str, Any]:
    """The device, its driver and what runs on it."""
    known: dict[str, Any] = {"versions": package_versions(), "torch_cuda": torch.version.cuda}
    if case.device == "cpu":
        return {**known, "name": platform.processor() or platform.machine()}
    torch.zeros(1, device="cuda").item()
    properties = torch.cuda.get_device_properties(0)
    return {
        **known,
        "name": properties.name,
        "memory_mib": properties.total_memory / 2**20,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver_version(),
    }


def driver_version() -> str | None:
    """What nvidia-smi says, if it is there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0]


def race(case: Case) -> dict[str, Any]:
    """PPO against the peer, both in fp32: the peer's models are loaded so."""
    options = Options(
        rounds=case.num_rounds,
        laps=case.num_laps,
        warmup_laps=case.num_warmup_laps,
        threads=case.threads,
        device=case.device,
        seed=case.seed,
        layers=("all layers", "top half"),
        build=Path(case.build),
        results=Path(case.build) / "gpu" / "races",
    )
    return race_ppo(case.workload, case.shape, options)


WORK: dict[str, Callable[[Case], dict[str, Any]]] = {
    "device": describe_device,
    "correctness": checks.run,
    "decode": decode.run,
    "race": race,
    "memory-7b": iteration.run,
    "largest": iteration.run,
    "iteration": iteration.run,
}

if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

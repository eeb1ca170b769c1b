"""`python -m benchmarks.gpu [PART ...]`: everything that only a GPU can answer, as one JSON and one table.

Parts: correctness, decode, race, memory-7b, largest, iteration. Each of their cases runs in a process of its
own; one that fails is recorded with its error, and the others still run. The files are written after every
case, so that what was measured is kept when the command is cut off.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import PARTS, Outcome, plan
from benchmarks.gpu.report import markdown
from benchmarks.gpu.runner import device_of, ended_well, run_cases
from benchmarks.machine import describe_code, describe_machine
from benchmarks.processes import alone_in
from benchmarks.report import write_report
from rlhf.commands.process import run_command
from rlhf.errors import UserError


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_intermixed_args(argv)
    parts = arguments.parts or list(PARTS)
    for part in parts:
        if part not in PARTS:
            raise UserError(
                f"there is no part `{part}`", where="parts", fix=f"Choose from {', '.join(PARTS)}."
            )
    check_device(arguments.device, toy=arguments.toy)
    name = "gpu-toy" if arguments.toy else "gpu"
    work = arguments.build.resolve() / name
    threads = arguments.threads or (1 if arguments.toy else os.cpu_count() or 1)
    report = {
        "toy": arguments.toy,
        "machine": describe_machine(),
        "code": {"commit": arguments.commit, "dirty": None} if arguments.commit else describe_code(),
        "device": device_of(arguments.device, work, seed=arguments.seed),
        "seed": arguments.seed,
        "parts": {},
    }
    cases = plan(
        parts,
        toy=arguments.toy,
        device=arguments.device,
        seed=arguments.seed,
        threads=threads,
        num_rounds=arguments.rounds,
        build=str(arguments.build.resolve()),
    )

    def keep(outcomes: Sequence[Outcome]) -> None:
        by_part: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS if part in parts}
        for outcome in outcomes:
            by_part[outcome.part].append(outcome.model_dump())
        report["parts"] = by_part
        write_report(report, markdown(report), arguments.output, name)

    with alone_in(work):
        outcomes = run_cases(cases, work, part_seconds=arguments.minutes * 60, keep=keep)
    print(f"\n{markdown(report)}\n{arguments.output / name}.json and .md", flush=True)
    return 0 if all(ended_well(each) for each in outcomes) else 1


def check_device(device: str, *, toy: bool) -> None:
    """Refuse what cannot be measured here.

    Raises:
        UserError: there is no such device, or a CPU was asked for what takes a GPU.
    """
    toys = "To try the command itself on small shapes: --device cpu --toy."
    if device == "cpu" and not toy:
        raise UserError("these shapes take a GPU", where="--device cpu", fix=toys)
    if device == "cuda":
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise UserError("torch finds no CUDA device here", where="--device cuda", fix=toys)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    made.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} [all of them]")
    made.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="where gpu.json goes")
    made.add_argument("--build", type=Path, default=Path("build/benchmarks"), help="working folder")
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="[cuda]")
    made.add_argument("--toy", action="store_true", help="shapes of a moment: tries the command itself")
    made.add_argument("--minutes", type=float, default=30.0, help="time that a part may take [30]")
    made.add_argument("--rounds", type=int, default=3, help="race: times that every racer starts [3]")
    made.add_argument("--threads", type=int, default=0, help="CPU threads of a case [all cores; toy: 1]")
    made.add_argument("--seed", type=int, default=0, help="[0]")
    made.add_argument("--commit", help="what the code is, where its folder has no git")
    return made


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

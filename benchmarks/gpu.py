"""`python -m benchmarks.gpu [PART ...]`: everything that only a GPU can answer, as one JSON and one table.

Parts: correctness, decode, race, memory-7b, largest, iteration. Each of their cases runs in a process of its
own; one that fails is recorded with its error, and the others go on. The files are written after every case,
so that what was measured is kept when the command is cut off.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import PARTS, TOYS, Answer, Case, Outcome, plan
from benchmarks.gpu_report import markdown
from benchmarks.machine import describe_code, describe_machine
from benchmarks.race import ROOT, alone_in, environment
from benchmarks.workloads import PPOWorkload
from rlhf.commands.process import run_command
from rlhf.errors import UserError

CASE = ("-m", "benchmarks.gpu_case")
"""What Python is told to run for a case."""
_LOG_LINES = 15
_DEVICE_SECONDS = 300.0


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
        report["parts"] = {
            part: [each.model_dump() for each in outcomes if each.part == part]
            for part in PARTS
            if part in parts
        }
        write(report, arguments.output, name)

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


def device_of(device: str, work: Path, *, seed: int) -> dict[str, Any]:
    """Name, memory and driver of the device, asked for in a process that leaves no context on it behind.

    Raises:
        UserError: the device does not answer.
    """
    shape, nothing = TOYS[0], PPOWorkload(name="", prompt_tokens=1, max_response_tokens=1, eos_hazard=0.0)
    case = Case(part="device", name="device", device=device, seed=seed, shape=shape, workload=nothing)
    outcome = run_case(case, work, seconds=_DEVICE_SECONDS)
    if outcome.status != "done":
        raise UserError(
            f"the device does not answer: {outcome.error}", where=f"--device {device}", fix="See nvidia-smi."
        )
    return outcome.result


def run_cases(
    cases: Sequence[Case], work: Path, *, part_seconds: float, keep: Callable[[Sequence[Outcome]], None]
) -> list[Outcome]:
    """Run the cases that their part's time and ladder leave room for; `keep` sees all outcomes each time."""
    outcomes: list[Outcome] = []
    spent: dict[str, float] = {}
    fallen: dict[tuple[str, str], str] = {}
    for case in cases:
        left, rung = part_seconds - spent.get(case.part, 0.0), (case.part, case.ladder)
        print(f"{case.part}: {case.name} ... ", end="", flush=True)
        if case.ladder and rung in fallen:
            outcome = _left_out(case, f"{fallen[rung]} did not end well, and this one is larger.")
        elif left <= 0:
            outcome = _left_out(case, "The part's time was spent: give it more with --minutes.")
        else:
            outcome = run_case(case, work, seconds=left)
        print(f"{outcome.status}, {outcome.seconds:.0f} s", flush=True)
        spent[case.part] = spent.get(case.part, 0.0) + outcome.seconds
        if case.ladder and outcome.status != "done":
            fallen.setdefault(rung, case.name)
        outcomes.append(outcome)
        keep(outcomes)
    return outcomes


def run_case(case: Case, work: Path, *, seconds: float, command: Sequence[str] = CASE) -> Outcome:
    """Run one case in a process of its own, and end it with all that it started when its time is up."""
    folder = work / case.part
    folder.mkdir(parents=True, exist_ok=True)
    name = case.name.replace(" ", "-").replace(",", "")
    case_file, answer_file = folder / f"{name}.case.json", folder / f"{name}.answer.json"
    log_file = folder / f"{name}.log"
    case_file.write_text(case.to_json(), encoding="utf-8")
    answer_file.unlink(missing_ok=True)
    started = time.perf_counter()
    with log_file.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *command, str(case_file), str(answer_file)],
            cwd=ROOT,
            env=environment(case.threads, None),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_session(process)
    tail = "\n".join(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
    took = time.perf_counter() - started
    return Outcome(
        part=case.part, name=case.name, seconds=took, **_answer(status, answer_file, tail).model_dump()
    )


def end_session(process: "subprocess.Popen[bytes]") -> None:
    """End what still runs of a process that leads its own session: racers must not keep the device."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ended_well(outcome: Outcome) -> bool:
    """Whether nothing is wrong: a case that does not fit, or that lacks a package, is an answer too."""
    checks = outcome.result.get("checks", [])
    return outcome.status not in ("failed", "out of time") and all(check["passed"] for check in checks)


def write(report: dict[str, Any], folder: Path, name: str) -> None:
    """Write `<name>.json` and `<name>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown(report), encoding="utf-8")


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


def _answer(status: int | None, answer_file: Path, tail: str) -> Answer:
    if status is None:
        return Answer(status="out of time", error=f"Its last words:\n{tail}")
    if status == 0 and answer_file.is_file():
        return Answer.read(answer_file)
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    return Answer(status="failed", error=f"It ended with {ended}:\n{tail}")


def _left_out(case: Case, why: str) -> Outcome:
    return Outcome(part=case.part, name=case.name, seconds=0.0, status="left out", error=why)


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

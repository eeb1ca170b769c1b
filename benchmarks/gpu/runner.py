"""Runs cases, each in a process of its own, within the time of their part."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import TOYS, Answer, Case, Outcome
from benchmarks.processes import ROOT, environment, file_name, last_lines
from benchmarks.workloads import PPOWorkload
from rlhf.errors import UserError

CASE = ("-m", "benchmarks.gpu.case")
"""What Python is told to run for a case."""
_DEVICE_SECONDS = 300.0


def device_of(device: str, work: Path, *, seed: int) -> dict[str, Any]:
    """Name, memory and driver of the device, asked for in a process that leaves no context on it behind.

    Raises:
        UserError: the device does not answer.
    """
    shape = TOYS[0]
    nothing = PPOWorkload(name="", prompt_tokens=1, max_response_tokens=1, eos_hazard=0.0)
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
        left = part_seconds - spent.get(case.part, 0.0)
        rung = (case.part, case.ladder)
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
    name = file_name(case.name)
    case_file = folder / f"{name}.case.json"
    answer_file = folder / f"{name}.answer.json"
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
    took = time.perf_counter() - started
    answer = _answer(status, answer_file, last_lines(log_file))
    return Outcome(part=case.part, name=case.name, seconds=took, **answer.model_dump())


def end_session(process: "subprocess.Popen[bytes]") -> None:
    """End what still runs of a process that leads its own session: racers must not keep the device."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ended_well(outcome: Outcome) -> bool:
    """Whether nothing is wrong: a case that does not fit, or that lacks a package, is an answer too."""
    checks = outcome.result.get("checks", [])
    return outcome.status not in ("failed", "out of time") and all(check["passed"] for check in checks)


def _answer(status: int | None, answer_file: Path, tail: str) -> Answer:
    if status is None:
        return Answer(status="out of time", error=f"Its last words:\n{tail}")
    if status == 0 and answer_file.is_file():
        return Answer.read(answer_file)
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    return Answer(status="failed", error=f"It ended with {ended}:\n{tail}")


def _left_out(case: Case, why: str) -> Outcome:
    return Outcome(part=case.part, name=case.name, seconds=0.0, status="left out", error=why)

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import runner
from benchmarks.gpu.plan import Case, Outcome, plan
from tests.unit.benchmarks.gpu.toys import COMMON, toy_case, toy_cases

STUB = """\
import pathlib, subprocess, sys, time
{body}
pathlib.Path(sys.argv[2]).write_text('{{"status": "done", "result": {{"a": 1}}}}')
"""


@pytest.fixture
def run_stub(tmp_path: Path) -> Callable[..., Outcome]:
    def run(body: str, *, seconds: float = 60) -> Outcome:
        script = tmp_path / "stub.py"
        script.write_text(STUB.format(body=body))
        case = toy_case("decode", "toy")
        return runner.run_case(case, tmp_path / "work", seconds=seconds, command=[str(script)])

    return run


def test_an_answer_comes_back(run_stub: Callable[..., Outcome]) -> None:
    outcome = run_stub("")
    assert (outcome.part, outcome.name, outcome.status, outcome.result) == ("decode", "toy", "done", {"a": 1})


def test_what_a_failed_process_said_is_kept(run_stub: Callable[..., Outcome]) -> None:
    outcome = run_stub("raise ValueError('no such thing')")
    assert outcome.status == "failed"
    assert "status 1" in (outcome.error or "")
    assert (outcome.error or "").endswith("ValueError: no such thing")


def test_a_mistake_that_a_user_could_fix_is_a_failure_too(run_stub: Callable[..., Outcome]) -> None:
    assert run_stub("sys.exit(2)").status == "failed"


def test_an_answer_of_an_earlier_process_does_not_count(run_stub: Callable[..., Outcome]) -> None:
    run_stub("")
    assert run_stub("sys.exit(0)").status == "failed"


def test_time_that_is_up_ends_a_process_and_all_that_it_started(
    run_stub: Callable[..., Outcome], tmp_path: Path
) -> None:
    fifo = tmp_path / "open while the child lives"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    child = f"import time; kept = open({str(fifo)!r}, 'wb', 0); kept.write(b'x'); time.sleep(600)"
    body = f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    assert run_stub(body, seconds=5).status == "out of time"
    assert os.read(reading, 1) == b"x"
    ended, _, _ = select.select([reading], [], [], 60)
    assert ended
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_ladder_ends_at_the_first_shape_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    statuses = {"13B, bf16": "out of memory", "34B, nf4": "failed"}
    ran: list[str] = []

    def run_case(case: Case, work: Path, *, seconds: float) -> Outcome:
        ran.append(case.name)
        status: Any = statuses.get(case.name, "done")
        return Outcome(part=case.part, name=case.name, seconds=1.0, status=status, error="why")

    monkeypatch.setattr(runner, "run_case", run_case)
    seen: list[int] = []
    cases = plan(["largest"], toy=False, **COMMON)
    outcomes = runner.run_cases(cases, tmp_path, part_seconds=60, keep=lambda all_: seen.append(len(all_)))
    assert ran == ["7B, bf16", "13B, bf16", "7B, nf4", "13B, nf4", "20B, nf4", "34B, nf4"]
    assert [each.name for each in outcomes] == [case.name for case in cases]
    assert [each.status for each in outcomes if each.name not in ran] == ["left out"] * 4
    assert seen == list(range(1, 11))


def test_a_part_that_has_spent_its_time_leaves_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[tuple[str, float]] = []

    def run_case(case: Case, work: Path, *, seconds: float) -> Outcome:
        given.append((case.part, seconds))
        return Outcome(part=case.part, name=case.name, seconds=35.0, status="done")

    monkeypatch.setattr(runner, "run_case", run_case)
    cases = toy_cases("correctness", "iteration")
    outcomes = runner.run_cases(cases, tmp_path, part_seconds=60, keep=lambda all_: None)
    assert given == [("correctness", 60), ("correctness", 25), ("iteration", 60), ("iteration", 25)]
    assert [each.status for each in outcomes] == ["done"] * 2 + ["left out"] * 2 + ["done"] * 2

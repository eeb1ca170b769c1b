import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import runner
from benchmarks.gpu.plan import Case, Outcome
from benchmarks.gpu.report import markdown
from rlhf.commands.process import run_command


def test_without_cuda_the_command_says_so_and_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_command(command.main, []) == 2
    error = capsys.readouterr().err
    assert "torch finds no CUDA device here" in error
    assert "--device cpu --toy" in error


@pytest.mark.parametrize(("argv", "said"), [(["--device", "cpu"], "take a GPU"), (["x"], "no part `x`")])
def test_what_cannot_be_measured_is_refused(
    argv: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command.main, argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_the_report_has_every_part_and_a_failed_check_is_the_commands_status(
    passed: bool, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = {"name": "sampler", "value": 0.25, "required": "≤ 0.05", "passed": passed}
    results: dict[str, Any] = {
        "device": {"name": "card", "versions": {"torch": "2"}, "driver": "580", "torch_cuda": "13"},
        "correctness": {"computes_in": "torch.bfloat16", "checks": [check]},
    }

    def run_case(case: Case, work: Path, *, seconds: float) -> Outcome:
        if case.part == "largest":
            error = "It ended with signal 9:\nkilled"
            return Outcome(part=case.part, name=case.name, seconds=1, status="out of memory", error=error)
        return Outcome(part=case.part, name=case.name, seconds=1, status="done", result=results[case.part])

    monkeypatch.setattr(runner, "run_case", run_case)
    argv = ["largest", "correctness", "--device", "cpu", "--toy", "--output", str(tmp_path)]
    assert command.main([*argv, "--build", str(tmp_path / "build"), "--commit", "abc"]) == status
    report = json.loads((tmp_path / "gpu-toy.json").read_text(encoding="utf-8"))
    assert list(report["parts"]) == ["correctness", "largest"]
    assert {"machine", "code", "device", "seed"} <= report.keys()
    text = (tmp_path / "gpu-toy.md").read_text(encoding="utf-8")
    assert text == markdown(report)
    assert "driver 580" in text
    assert "commit abc" in text
    assert ("**fails: ≤ 0.05**" in text) is not passed
    assert "- toy, bf16: out of memory. killed" in text

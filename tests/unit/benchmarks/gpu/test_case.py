import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import case as case_process
from benchmarks.gpu.out_of_memory import is_out_of_memory
from benchmarks.gpu.plan import Answer, Case
from rlhf.errors import UserError
from tests.unit.benchmarks.gpu.toys import failures, toy_case, toy_cases


def test_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("…"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_without_a_package_a_case_is_left_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert case_process.answer(toy_case("correctness", "nf4")).error == "bitsandbytes is not installed."
    assert case_process.answer(toy_cases("race")[0]).error == "datasets is not installed."
    assert case_process.missing(toy_case("correctness", "bf16")) is None


def test_without_the_peer_the_race_is_left_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(folder: Path) -> Path:
        raise UserError("cannot install trl 1.12.0: no network")

    monkeypatch.setattr(case_process, "install_peer", install)
    answer = case_process.answer(toy_cases("race")[0])
    assert (answer.status, answer.error) == ("left out", "cannot install trl 1.12.0: no network")


def test_out_of_memory_is_an_answer_and_another_error_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    case = toy_case("memory-7b", "toy, nf4").model_copy(update={"precision": "bf16"})

    def out_of_memory(case: Case) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def broken(case: Case) -> dict[str, Any]:
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setitem(case_process.WORK, case.part, out_of_memory)
    assert case_process.answer(case) == Answer(status="out of memory", error="CUDA out of memory.")
    monkeypatch.setitem(case_process.WORK, case.part, broken)
    with pytest.raises(RuntimeError, match="misaligned"):
        case_process.answer(case)


@pytest.mark.slow
def test_a_case_runs_without_the_packages_that_only_the_race_needs(root: Path, tmp_path: Path) -> None:
    case_file, answer_file = tmp_path / "case.json", tmp_path / "answer.json"
    case_file.write_text(toy_case("correctness", "bf16").to_json())
    absent = ("trl", "datasets", "wandb", "deepspeed", "bitsandbytes")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); from benchmarks.gpu.case import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(case_file), str(answer_file)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert failures(Answer.read(answer_file).result) == []

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ppo.rollout
from benchmarks import gpu, gpu_case, gpu_checks, gpu_decode, gpu_iteration
from benchmarks.gpu_memory import is_out_of_memory
from benchmarks.gpu_models import add_roles, base_tensors, random_base, random_prompts
from benchmarks.gpu_plan import LADDER, ONE_B, PARTS, SMALL, TOYS, Answer, Case, Outcome, plan, shape
from benchmarks.gpu_report import markdown
from rlhf.commands.process import run_command
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.batching import TokenBatch
from rlhf.settings.groups import ModelSettings, Precision

COMMON: dict[str, Any] = {"device": "cpu", "seed": 0, "threads": 1}


def toy_cases(*parts: str) -> list[Case]:
    return plan(parts, toy=True, **COMMON)


def toy_case(part: str, name: str) -> Case:
    return next(case for case in toy_cases(part) if case.name == name)


# The plan


@pytest.mark.parametrize("toy", [True, False])
def test_every_part_has_cases_of_names_of_their_own(toy: bool) -> None:
    cases = plan(PARTS, toy=toy, **COMMON)
    assert list(dict.fromkeys(case.part for case in cases)) == list(PARTS)
    assert len({(case.part, case.name) for case in cases}) == len(cases)
    assert {case.part for case in plan(["race"], toy=toy, **COMMON)} == {"race"}


def test_a_shape_has_as_many_parameters_as_its_name_says() -> None:
    for each in (SMALL, ONE_B, *LADDER):
        unit = {"M": 1e6, "B": 1e9}[each.name[-1]]
        assert abs(each.num_parameters / (float(each.name[:-1]) * unit) - 1) < 0.14, each.name


@pytest.mark.parametrize("toy", TOYS)
def test_the_count_of_parameters_is_the_models(toy: Any) -> None:
    model = random_base(toy, "fp32", device="cpu", seed=0).model
    assert toy.num_parameters == sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    assert toy.num_step_parameters == toy.num_parameters - embedding


def test_the_floor_is_bytes_over_bandwidth() -> None:
    tiny = shape("tiny", 4, 1, 2, 1, 8, 10)
    # q and o 4·4, k and v 4·2, three of 4·8, norms 3·4, head 10·4; a token's keys and values are 2·2 numbers.
    weights = 2 * 16 + 2 * 8 + 3 * 32 + 12 + 40
    options = {"context_tokens": 7.5, "bytes_per_number": 2, "adapter_bytes": 100, "bandwidth": 1000.0}
    found = gpu_decode.floor_seconds(tiny, batch=3, **options)  # type: ignore[arg-type]
    assert found == pytest.approx((2 * weights + 100 + 3 * 7.5 * 4 * 2) / 1000)


# Random bases


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_base_quantized_weight_by_weight_is_the_one_that_loading_makes(
    precision: Precision, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    random_base(TOYS[1], "fp32", device="cpu", seed=5).save(tmp_path)
    loaded = Backbone.load(tmp_path, settings=ModelSettings(path=str(tmp_path), precision=precision))
    made = random_base(TOYS[1], precision, device="cpu", seed=5)
    theirs, ours = base_tensors(loaded), base_tensors(made)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.hidden(ids), loaded.hidden(ids))


def test_a_random_base_is_the_same_under_the_same_seed_alone() -> None:
    bases = [base_tensors(random_base(TOYS[0], "bf16", device="cpu", seed=seed)) for seed in (1, 1, 2)]
    same = [all(torch.equal(v, other[k]) for k, v in bases[0].items()) for other in bases]
    assert same == [True, True, False]


# Iterations and decoding


def test_an_iteration_is_cut_into_its_phases_and_no_response_ends_early() -> None:
    case = toy_case("iteration", "toy, top half")
    result = gpu_iteration.run(case)
    assert list(result["seconds"]) == [*gpu_iteration.PHASES, "iteration"]
    assert min(result["seconds"].values()) > 0
    assert sum(result["seconds"][name] for name in gpu_iteration.PHASES) == pytest.approx(
        result["seconds"]["iteration"]
    )
    full = case.workload.rollouts * case.workload.max_response_tokens
    assert [lap["response_tokens"] for lap in result["iterations"]] == [full] * 2


def test_the_time_of_sampling_is_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ppo.rollout.sample  # type: ignore[attr-defined]

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)
        return sample(*args, **kwargs)

    case = toy_case("iteration", "toy, top half")
    backbone = random_base(case.shape, case.precision, device="cpu", seed=0)
    engine = add_roles(backbone, case)
    prompts = random_prompts(case.shape, [6] * 8, seed=1)
    usual = gpu_iteration.iterate(engine, prompts, 0)["seconds"]
    monkeypatch.setattr(ppo.rollout, "sample", slow)
    seconds = gpu_iteration.iterate(engine, prompts, 1)["seconds"]
    assert seconds["sampling"] - usual["sampling"] > 0.2
    assert ppo.rollout.sample is slow  # type: ignore[attr-defined]


def test_decoding_stops_at_the_first_batch_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(backbone: Backbone, case: Case, batch: int, *, role: str) -> dict[str, Any]:
        if batch == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return {"batch": batch, "role": role}

    monkeypatch.setattr(gpu_decode, "measure", measure)
    case = toy_case("decode", "toy").model_copy(update={"batches": [1, 4, 9]})
    cells = gpu_decode.run(case)["cells"]
    assert [(cell["batch"], "error" in cell) for cell in cells] == [(1, False), (1, False), (4, True)]


def test_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("…"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


# Checks


def failures(result: dict[str, Any]) -> list[str]:
    return [check["name"] for check in result["checks"] if not check["passed"]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_correct_engine_passes_every_check(precision: str) -> None:
    assert failures(gpu_checks.run(toy_case("correctness", precision))) == []


def test_a_sampler_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = gpu_checks.sample  # type: ignore[attr-defined]

    def off(*args: Any, **kwargs: Any) -> Any:
        rollouts = sample(*args, **kwargs)
        return replace(rollouts, sampled_logprobs_BT=rollouts.sampled_logprobs_BT + 0.01)

    monkeypatch.setattr(gpu_checks, "sample", off)
    found = failures(gpu_checks.run(toy_case("correctness", "fp32")))
    assert found == [
        f"{path}: Δ log-probability, {kind}"
        for path in ("sampler", "plain path's sampler", "sampler with refilled slots")
        for kind in ("mean", "max")
    ]


def test_a_path_that_draws_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = gpu_checks.sample  # type: ignore[attr-defined]

    def another(backbone: Backbone, *args: Any, **kwargs: Any) -> Any:
        return sample(backbone, *args, **{**kwargs, "seed": 0 if backbone.has_plain_cache else 1})

    monkeypatch.setattr(gpu_checks, "sample", another)
    found = failures(gpu_checks.run(toy_case("correctness", "fp32")))
    assert found == ["usual and plain path: rows drawn alike"]


def test_stale_states_of_the_trunk_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run_trunk = Backbone.run_trunk

    def stale(self: Backbone, batch: TokenBatch) -> torch.Tensor | None:
        return run_trunk(self, TokenBatch(batch.ids_BL.flip(1), batch.lengths_B))

    monkeypatch.setattr(Backbone, "run_trunk", stale)
    found = failures(gpu_checks.run(toy_case("correctness", "fp32")))
    assert [name for name in found if not name.startswith("frozen trunk")] == []
    assert len(found) == 3


@pytest.mark.parametrize("touched", ["base", "reward"])
def test_an_iteration_that_moves_more_than_policy_and_value_is_found(
    touched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def iterate(engine: Any, prompts: Any, number: int) -> Any:
        lap = gpu_iteration.iterate(engine, prompts, number)
        tensors = base_tensors(engine.backbone).values()
        parameters = engine.backbone.adapter_parameters("reward").values()
        with torch.no_grad():
            next(iter(tensors if touched == "base" else parameters)).flatten()[0] += 1
        return lap

    monkeypatch.setattr(gpu_checks, "iterate", iterate)
    [found] = failures(gpu_checks.run(toy_case("correctness", "fp32")))
    assert touched in found


# Processes

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
        return gpu.run_case(case, tmp_path / "work", seconds=seconds, command=[str(script)])

    return run


def test_an_answer_comes_back(run_stub: Callable[..., Outcome]) -> None:
    outcome = run_stub("")
    assert (outcome.part, outcome.name, outcome.status, outcome.result) == ("decode", "toy", "done", {"a": 1})


def test_what_a_failed_process_said_is_kept(run_stub: Callable[..., Outcome]) -> None:
    outcome = run_stub("raise ValueError('no such thing')")
    assert outcome.status == "failed"
    assert "status 1" in (outcome.error or "")
    assert (outcome.error or "").endswith("ValueError: no such thing")


def test_a_mistake_that_a_user_could_mend_is_a_failure_too(run_stub: Callable[..., Outcome]) -> None:
    assert run_stub("sys.exit(2)").status == "failed"


def test_an_answer_of_an_earlier_process_does_not_count(run_stub: Callable[..., Outcome]) -> None:
    run_stub("")
    assert run_stub("sys.exit(0)").status == "failed"


def test_time_that_is_up_ends_a_process_and_all_that_it_started(
    run_stub: Callable[..., Outcome], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(mark)!r}).touch()"
    outcome = run_stub(f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)", seconds=0.7)
    assert outcome.status == "out of time"
    time.sleep(1.5)
    assert not mark.exists()


def test_a_ladder_ends_at_the_first_shape_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    statuses = {"13B, bf16": "out of memory", "34B, nf4": "failed"}
    ran: list[str] = []

    def run_case(case: Case, work: Path, *, seconds: float) -> Outcome:
        ran.append(case.name)
        status: Any = statuses.get(case.name, "done")
        return Outcome(part=case.part, name=case.name, seconds=1.0, status=status, error="why")

    monkeypatch.setattr(gpu, "run_case", run_case)
    seen: list[int] = []
    cases = plan(["largest"], toy=False, **COMMON)
    outcomes = gpu.run_cases(cases, tmp_path, part_seconds=60, keep=lambda all_: seen.append(len(all_)))
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

    monkeypatch.setattr(gpu, "run_case", run_case)
    cases = toy_cases("correctness", "iteration")
    outcomes = gpu.run_cases(cases, tmp_path, part_seconds=60, keep=lambda all_: None)
    assert given == [("correctness", 60), ("correctness", 25), ("iteration", 60), ("iteration", 25)]
    assert [each.status for each in outcomes] == ["done"] * 2 + ["left out"] * 2 + ["done"] * 2


# A case's process


def test_without_a_package_a_case_is_left_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpu_case.answer(toy_case("correctness", "nf4")).error == "bitsandbytes is not installed."
    assert gpu_case.answer(toy_cases("race")[0]).error == "datasets is not installed."
    assert gpu_case.missing(toy_case("correctness", "bf16")) is None


def test_without_the_peer_the_race_is_left_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(folder: Path) -> Path:
        raise UserError("cannot install trl 1.12.0: no network")

    monkeypatch.setattr(gpu_case, "install_peer", install)
    answer = gpu_case.answer(toy_cases("race")[0])
    assert (answer.status, answer.error) == ("left out", "cannot install trl 1.12.0: no network")


def test_out_of_memory_is_an_answer_and_another_error_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    case = toy_case("memory-7b", "toy, nf4").model_copy(update={"precision": "bf16"})

    def out_of_memory(case: Case) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def broken(case: Case) -> dict[str, Any]:
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setitem(gpu_case.WORK, case.part, out_of_memory)
    assert gpu_case.answer(case) == Answer(status="out of memory", error="CUDA out of memory.")
    monkeypatch.setitem(gpu_case.WORK, case.part, broken)
    with pytest.raises(RuntimeError, match="misaligned"):
        gpu_case.answer(case)


@pytest.mark.slow
def test_a_case_runs_without_the_packages_that_only_the_race_needs(root: Path, tmp_path: Path) -> None:
    case_file, answer_file = tmp_path / "case.json", tmp_path / "answer.json"
    case_file.write_text(toy_case("correctness", "bf16").to_json())
    absent = ("trl", "datasets", "wandb", "deepspeed", "bitsandbytes")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); from benchmarks.gpu_case import main; "
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


# The command


def test_without_cuda_the_command_says_so_and_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_command(gpu.main, []) == 2
    error = capsys.readouterr().err
    assert "torch finds no CUDA device here" in error
    assert "--device cpu --toy" in error


@pytest.mark.parametrize(("argv", "said"), [(["--device", "cpu"], "take a GPU"), (["x"], "no part `x`")])
def test_what_cannot_be_measured_is_refused(
    argv: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(gpu.main, argv) == 2
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

    monkeypatch.setattr(gpu, "run_case", run_case)
    argv = ["largest", "correctness", "--device", "cpu", "--toy", "--output", str(tmp_path)]
    assert gpu.main([*argv, "--build", str(tmp_path / "build"), "--commit", "abc"]) == status
    report = json.loads((tmp_path / "gpu-toy.json").read_text(encoding="utf-8"))
    assert list(report["parts"]) == ["correctness", "largest"]
    assert {"machine", "code", "device", "seed"} <= report.keys()
    text = (tmp_path / "gpu-toy.md").read_text(encoding="utf-8")
    assert text == markdown(report)
    assert "driver 580" in text
    assert "commit abc" in text
    assert ("**fails: ≤ 0.05**" in text) is not passed
    assert "- toy, bf16: out of memory. killed" in text


def test_real_results_make_a_table_of_every_part() -> None:
    outcomes: dict[str, list[dict[str, Any]]] = {}
    for part in ("correctness", "decode", "largest"):
        case = toy_cases(part)[0]
        answer = gpu_case.answer(case)
        outcome = Outcome(part=part, name=case.name, seconds=1.0, **answer.model_dump())
        outcomes[part] = [json.loads(outcome.to_json())]
    report = {
        "toy": True,
        "machine": {"processor": "p", "cores": 2, "memory_gib": 1.0, "system": "s"},
        "code": {"commit": None, "dirty": None},
        "device": gpu_case.describe_device(toy_cases("decode")[0]),
        "seed": 0,
        "parts": outcomes,
    }
    text = markdown(report)
    assert "no figure here says anything of a GPU" in text
    assert "| toy | policy | 4 |" in text
    assert "| toy, bf16 | training |" in text
    assert "Largest that completes an iteration: toy, bf16." in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(widths) == {3, 6, 9}

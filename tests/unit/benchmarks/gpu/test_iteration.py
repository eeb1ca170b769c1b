import time
from typing import Any

import pytest

import ppo.rollout
from benchmarks.gpu import iteration
from benchmarks.gpu.models import add_roles, random_base, random_prompts
from tests.unit.benchmarks.gpu.toys import toy_case


def test_an_iteration_is_cut_into_its_phases_and_no_response_ends_early() -> None:
    case = toy_case("iteration", "toy, top half")
    result = iteration.run(case)
    assert list(result["seconds"]) == [*iteration.PHASES, "iteration"]
    assert min(result["seconds"].values()) > 0
    assert sum(result["seconds"][name] for name in iteration.PHASES) == pytest.approx(
        result["seconds"]["iteration"]
    )
    full = case.workload.rollouts * case.workload.max_response_tokens
    assert [lap["response_tokens"] for lap in result["iterations"]] == [full] * 2


def test_the_time_of_sampling_is_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ppo.rollout.sample  # type: ignore[attr-defined]

    took = []

    def slow(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        time.sleep(0.3)
        sampled = sample(*args, **kwargs)
        took.append(time.perf_counter() - began)
        return sampled

    case = toy_case("iteration", "toy, top half")
    backbone = random_base(case.shape, case.precision, device="cpu", seed=0)
    engine = add_roles(backbone, case)
    prompts = random_prompts(case.shape, [6] * 8, seed=1)
    monkeypatch.setattr(ppo.rollout, "sample", slow)
    began = time.perf_counter()
    seconds = iteration.iterate(engine, prompts, 1)["seconds"]
    rest = time.perf_counter() - began - sum(took)
    assert seconds["sampling"] >= sum(took) >= 0.3
    assert sum(value for part, value in seconds.items() if part != "sampling") <= rest
    assert ppo.rollout.sample is slow  # type: ignore[attr-defined]

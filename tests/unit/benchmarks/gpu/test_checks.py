from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.base_model import base_tensors
from benchmarks.gpu import checks, iteration
from rlhf.model.backbone import Backbone
from rlhf.model.batching import TokenBatch
from tests.unit.benchmarks.gpu.toys import failures, toy_case


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_correct_engine_passes_every_check(precision: str) -> None:
    assert failures(checks.run(toy_case("correctness", precision))) == []


def test_a_sampler_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = checks.sample  # type: ignore[attr-defined]

    def off(*args: Any, **kwargs: Any) -> Any:
        rollouts = sample(*args, **kwargs)
        return replace(rollouts, sampled_logprobs_BT=rollouts.sampled_logprobs_BT + 0.01)

    monkeypatch.setattr(checks, "sample", off)
    found = failures(checks.run(toy_case("correctness", "fp32")))
    assert found == [
        f"{path}: Δ log-probability, {kind}"
        for path in ("sampler", "plain path's sampler", "sampler with refilled slots")
        for kind in ("mean", "max")
    ]


def test_a_path_that_draws_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = checks.sample  # type: ignore[attr-defined]

    def another(backbone: Backbone, *args: Any, **kwargs: Any) -> Any:
        return sample(backbone, *args, **{**kwargs, "seed": 0 if backbone.has_plain_cache else 1})

    monkeypatch.setattr(checks, "sample", another)
    found = failures(checks.run(toy_case("correctness", "fp32")))
    assert found == ["usual and plain path: rows drawn alike"]


def test_stale_states_of_the_trunk_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run_trunk = Backbone.run_trunk

    def stale(self: Backbone, batch: TokenBatch) -> torch.Tensor | None:
        return run_trunk(self, TokenBatch(batch.ids_BL.flip(1), batch.lengths_B))

    monkeypatch.setattr(Backbone, "run_trunk", stale)
    found = failures(checks.run(toy_case("correctness", "fp32")))
    assert [name for name in found if not name.startswith("frozen trunk")] == []
    assert len(found) == 3


@pytest.mark.parametrize("touched", ["base", "reward"])
def test_an_iteration_that_moves_more_than_policy_and_value_is_found(
    touched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def iterate(engine: Any, prompts: Any, number: int) -> Any:
        lap = iteration.iterate(engine, prompts, number)
        tensors = base_tensors(engine.backbone).values()
        parameters = engine.backbone.adapter_parameters("reward").values()
        with torch.no_grad():
            next(iter(tensors if touched == "base" else parameters)).flatten()[0] += 1
        return lap

    monkeypatch.setattr(checks, "iterate", iterate)
    [found] = failures(checks.run(toy_case("correctness", "fp32")))
    assert touched in found

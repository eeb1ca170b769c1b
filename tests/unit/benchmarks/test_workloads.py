import pytest

from benchmarks.__main__ import main
from benchmarks.trl.learning import layer_overrides
from benchmarks.workloads import (
    PPO_WORKLOADS,
    REWARD_WORKLOADS,
    SHAPES,
    adapted_layers,
    lora_values,
    racer_pairs,
)
from rlhf.errors import UserError


def test_real_lengths_have_a_mean_of_at_most_26_tokens() -> None:
    workload = PPO_WORKLOADS["ppo-real"]
    stay = 1 - workload.eos_hazard
    mean = sum(stay**position for position in range(workload.max_response_tokens))
    assert 20 < mean <= 26


def test_every_workload_fits_into_the_context_of_every_shape() -> None:
    longest = [w.prompt_tokens + w.max_response_tokens for w in PPO_WORKLOADS.values()]
    longest += [w.longest_sequence for w in REWARD_WORKLOADS.values()]
    assert max(longest) <= min(shape.max_length for shape in SHAPES.values())


def test_the_top_half_is_the_upper_layers() -> None:
    assert adapted_layers("top half", 8) == [4, 5, 6, 7]
    assert adapted_layers("top half", 5) == [3, 4]
    assert adapted_layers("all layers", 8) is None


def test_the_top_half_is_compared_with_its_like_and_with_all_layers() -> None:
    assert racer_pairs(["all layers"]) == [("ours, all layers", "peer, all layers")]
    assert racer_pairs(["all layers", "top half"]) == [
        ("ours, all layers", "peer, all layers"),
        ("ours, top half", "peer, top half"),
        ("ours, top half", "peer, all layers"),
    ]


def test_adapters_sit_on_the_upper_half_of_the_layers() -> None:
    workload = PPO_WORKLOADS["ppo-fixed"]
    assert lora_values(workload, "all layers", 8)["top_layers"] is None
    assert lora_values(workload, "top half", 8)["top_layers"] == 4
    assert adapted_layers("top half", 5) == [3, 4]
    assert layer_overrides("all layers", 2) == []
    assert layer_overrides("top half", 2) == ["reward.lora.top_layers=1", "ppo.lora.top_layers=1"]


@pytest.mark.parametrize("arguments", [["ppo-slow"], ["reward", "--shapes", "8B"]])
def test_an_unknown_race_or_shape_is_told_before_anything_runs(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="there is no"):
        main(arguments)

from pathlib import Path
from typing import cast

import pytest
from torch import nn

from benchmarks.trl.peer_settings import linear_names, peer_arguments, peer_lora, reward_batching
from benchmarks.workloads import WHAT_BOTH_CAN
from ppo.config import PPOSettings
from rlhf.errors import UserError
from rlhf.settings.groups import LoraSettings, SourceSettings
from rlhf.settings.recipe import load_recipe

SETTINGS = PPOSettings(prompts=[SourceSettings(path="prompts.jsonl")], num_iterations=7)


def arguments(**changes: object) -> dict[str, object]:
    return peer_arguments(SETTINGS.model_copy(update=changes), seed=1, device="cpu", stops_at_eos=True)


def test_the_peer_takes_as_many_steps_as_ours() -> None:
    told = arguments()
    batch = cast(int, told["per_device_train_batch_size"]) * cast(int, told["gradient_accumulation_steps"])
    minibatch = batch // cast(int, told["num_mini_batches"])
    # Without accumulation a device batch that is no smaller than the minibatch is one micro-batch and a step.
    assert told["gradient_accumulation_steps"] == 1
    assert cast(int, told["per_device_train_batch_size"]) >= minibatch
    assert batch == SETTINGS.rollouts_per_iteration
    assert cast(int, told["total_episodes"]) == 7 * SETTINGS.rollouts_per_iteration
    assert (told["num_ppo_epochs"], told["num_mini_batches"]) == (4, 4)


def test_no_penalty_is_said_in_the_peers_way() -> None:
    assert arguments(missing_eos_penalty=0.0)["missing_eos_penalty"] is None
    assert arguments()["missing_eos_penalty"] == 1.0


@pytest.mark.parametrize(
    "changes",
    [{"value_learning_rate": 1e-5}, {"max_approx_kl": 0.1}, {"num_minibatches": 3}, {"value": "joint"}],
)
def test_what_the_peer_cannot_do_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match="no such setting"):
        arguments(**changes)


def test_the_stories_recipe_is_one_that_the_peer_can_run(root: Path) -> None:
    recipe = load_recipe(root / "configs" / "stories" / "recipe.yaml", WHAT_BOTH_CAN)
    settings = cast(PPOSettings, recipe.section("ppo"))
    told = peer_arguments(settings, seed=1, device="cpu", stops_at_eos=True)
    assert told["kl_coef"] == settings.kl.coefficient
    assert told["learning_rate"] == settings.policy_learning_rate


@pytest.mark.parametrize("pairs", [16, 96, 576])
def test_reward_batches_divide_a_step_and_fit_the_budget(pairs: int) -> None:
    batch, accumulation = reward_batching(pairs_per_step=pairs, longest=56, budget_tokens=8192)
    assert batch * accumulation == pairs
    assert batch * 2 * 56 <= 8192
    assert batch == max(d for d in range(1, 74) if pairs % d == 0)


def test_a_batch_has_at_least_one_pair() -> None:
    assert reward_batching(pairs_per_step=6, longest=500, budget_tokens=100) == (1, 6)


def test_adapters_sit_on_every_linear_layer_but_the_head() -> None:
    model = nn.ModuleDict({"up": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 2)})
    assert linear_names(model, model["head"]) == ["up"]
    told = peer_lora(LoraSettings(rank=4, alpha=8.0), ["up"], "top half", 4)
    assert (told["r"], told["target_modules"], told["layers_to_transform"]) == (4, ["up"], [2, 3])

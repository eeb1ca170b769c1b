import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from benchmarks.base_model import EOS, PAD, write_base_model
from benchmarks.trl.fixtures import (
    completion_lengths,
    prepare_ppo,
    prepare_reward,
    read_groups,
    synthetic_groups,
    write_prompt_ids,
)
from benchmarks.trl.peer_models import reward_model, value_model
from benchmarks.workloads import REWARD_WORKLOADS, SHAPES, PPOWorkload
from ppo.config import PPOSettings
from ppo.models import VALUE
from ppo.train import PPO
from rlhf.model.backbone import Backbone
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import from_lists
from rlhf.settings.groups import SamplingSettings
from rlhf.settings.recipe import load_recipe

TOY = SHAPES["toy"]
WORKLOAD = PPOWorkload(
    name="small", prompt_tokens=6, max_response_tokens=10, eos_hazard=0.1, rollouts=4, num_prompts=24
)


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_ppo(tmp_path_factory.mktemp("runs") / "ppo", WORKLOAD, TOY, "all layers")


def lengths_under(hazard: float, folder: Path) -> tuple[list[int], float]:
    write_base_model(folder, TOY, eos_hazard=hazard)
    prompts = torch.randint(4, TOY.vocab_size, (400, 6), generator=torch.Generator().manual_seed(0)).tolist()
    rollouts = sample(
        Backbone.load(folder),
        prompts,
        role="reference",
        settings=SamplingSettings(max_response_tokens=12, batch_size=400),
        keys=[(row,) for row in range(400)],
        seed=5,
    )
    assert PAD not in {token for row in rollouts.response_lists() for token in row}
    assert {row.index(EOS) for row in rollouts.response_lists() if EOS in row} <= set(range(12))
    return rollouts.response_lengths_B.tolist(), float(rollouts.ended_B.float().mean())


def test_lengths_follow_the_hazard(tmp_path: Path) -> None:
    lengths, ended = lengths_under(0.1, tmp_path)
    mean = sum(0.9**position for position in range(12))
    assert abs(float(np.mean(lengths)) - mean) < 4 * float(np.std(lengths)) / 20
    assert abs(ended - (1 - 0.9**12)) < 0.1


def test_without_a_hazard_no_response_ends(tmp_path: Path) -> None:
    lengths, ended = lengths_under(0.0, tmp_path)
    assert (set(lengths), ended) == ({12}, 0.0)


def test_the_peer_draws_from_our_training_prompts_of_the_same_length(
    recipe_path: Path, tmp_path: Path
) -> None:
    write_prompt_ids(load_recipe(recipe_path), tmp_path / "peer" / "prompts.json")
    prompts = json.loads((tmp_path / "peer" / "prompts.json").read_text())
    assert {len(ids) for ids in prompts} == {WORKLOAD.prompt_tokens}
    recipe = load_recipe(recipe_path)
    assert prompts == PPO(recipe, cast(PPOSettings, recipe.section("ppo"))).data.train.ids


def test_the_peers_reward_and_value_start_as_ours(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    stage = PPO(recipe, cast(PPOSettings, recipe.section("ppo")))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, TOY.vocab_size, (5, 14), generator=generator)
    rollouts = from_lists(ids[:, :6].tolist(), ids[:, 6:].tolist(), stage.backbone)
    ours = stage.reward.score(rollouts, [], [])
    with torch.no_grad(), stage.backbone.role(VALUE):
        hidden = stage.backbone.hidden(ids)
        our_values = stage.backbone.scalar(VALUE, hidden.flatten(0, 1)).reshape(ids.shape)
    with torch.no_grad():
        reward, value = reward_model(recipe.run_folder), value_model(recipe.run_folder)
        theirs = reward.score(reward.model(ids).last_hidden_state)[:, -1, 0]
        their_values = value.score(value.model(ids).last_hidden_state)[..., 0]
    assert ours.std() > 1e-3
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(their_values, our_values, atol=1e-4, rtol=1e-4)


def test_the_peers_value_trains_as_many_numbers_as_ours(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    stage = PPO(recipe, cast(PPOSettings, recipe.section("ppo")))
    value = value_model(recipe.run_folder)
    theirs = sum(p.numel() for p in value.parameters() if p.requires_grad)
    assert theirs == sum(p.numel() for p in stage.backbone.role_parameters(VALUE).values())


@pytest.mark.parametrize("name", ["reward-equal-4", "reward-skewed-9"])
def test_every_pair_of_a_synthetic_group_is_decided_by_the_share_of_good_words(name: str) -> None:
    workload = REWARD_WORKLOADS[name].model_copy(update={"num_groups": 6, "num_held_out": 2})
    for group in synthetic_groups(workload, TOY.vocab_size):
        shares = [np.mean([4 <= token < 36 for token in ids[:-1]]) for ids in group.response_ids]
        assert len(group.pairs) == workload.pairs_per_group
        assert all(shares[better] > shares[worse] for better, worse, _, _ in group.pairs)
        assert all(ids[-1] == EOS for ids in group.response_ids)
        assert group.max_tokens <= workload.longest_sequence


def test_skewed_lengths_have_the_stated_median() -> None:
    workload = REWARD_WORKLOADS["reward-skewed-9"]
    random = np.random.default_rng(0)
    lengths = [length for _ in range(300) for length in completion_lengths(workload, random)]
    assert abs(np.median(lengths) - workload.median_tokens) < 1.5
    assert (min(lengths), max(lengths)) == (workload.min_tokens, workload.max_tokens)


def test_groups_come_back_as_they_were_written(tmp_path: Path) -> None:
    workload = REWARD_WORKLOADS["reward-skewed-4"].model_copy(update={"num_groups": 5, "num_held_out": 3})
    prepare_reward(tmp_path / "run", workload, TOY, "all layers")
    train, held_out = read_groups(tmp_path / "run")
    written = synthetic_groups(workload, TOY.vocab_size)
    assert [g.pairs for g in train + held_out] == [g.pairs for g in written]
    assert [g.sequences for g in train] == [g.sequences for g in written[:5]]

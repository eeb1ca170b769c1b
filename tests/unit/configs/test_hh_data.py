"""The hh recipe on real transcripts: every one of the 1,653 pairs is accounted for."""

from pathlib import Path
from typing import cast

import pytest

from ppo.config import PPOSettings
from reward.config import RewardSettings
from rlhf.data.columns import ASSISTANT, HUMAN
from rlhf.data.sources import read_demonstrations, read_prompts, read_rankings
from rlhf.settings.recipe import Recipe, load_recipe
from sft.config import SFTSettings

NUM_PAIRS = 1653


@pytest.fixture(scope="module")
def recipe(root: Path, shared: Path) -> Recipe:
    path = shared / "data" / "hh-harmless" / "pairs.jsonl"
    sources = ("sft.demonstrations.0.path", "reward.rankings.0.path", "ppo.prompts.0.path")
    return load_recipe(root / "configs" / "hh" / "recipe.yaml", [f"{source}={path}" for source in sources])


def test_every_pair_is_accounted_for_in_all_three_stages(recipe: Recipe, tmp_path: Path) -> None:
    sft = cast(SFTSettings, recipe.section("sft"))
    reward = cast(RewardSettings, recipe.section("reward"))
    ppo = cast(PPOSettings, recipe.section("ppo"))
    demonstrations, of_sft = read_demonstrations(sft.demonstrations, seed=1, run_folder=tmp_path)
    rankings, of_reward = read_rankings(reward.rankings, seed=1, run_folder=tmp_path)
    prompts, of_ppo = read_prompts(ppo.prompts, seed=1, run_folder=tmp_path)
    for records, counts in ((demonstrations, of_sft), (rankings, of_reward), (prompts, of_ppo)):
        assert counts.read() == NUM_PAIRS
        assert counts.used() == len(records)
        assert counts.used() + sum(counts.dropped().values()) == NUM_PAIRS
    assert of_sft.dropped() == {"empty completion": 3}
    assert of_reward.dropped() == {"empty completion": 3, "prompts differ": 3}
    assert of_ppo.dropped() == {}


def test_transcripts_are_cut_before_the_last_answer(recipe: Recipe, tmp_path: Path) -> None:
    reward = cast(RewardSettings, recipe.section("reward"))
    rankings, _ = read_rankings(reward.rankings, seed=1, run_folder=tmp_path)
    for ranking in rankings:
        assert isinstance(ranking.prompt, str)
        assert ranking.prompt.startswith(HUMAN)
        assert ranking.prompt.endswith(ASSISTANT)
        assert ranking.ranks == (1, 2)
        assert all(text.startswith(" ") and text.strip() for text in ranking.completions)

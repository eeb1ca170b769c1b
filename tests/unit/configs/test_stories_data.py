"""The prompts and the scorer of the stories recipe."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

from labeling.config import LabelingSettings
from ppo.config import PPOSettings
from reward.config import RewardSettings
from rlhf.data.scorers import load_scorer
from rlhf.settings.recipe import load_recipe

FOLDER = Path("configs/stories")


@pytest.fixture(autouse=True)
def _in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def generate(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("stories_generate", root / FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prompts(root: Path) -> list[str]:
    lines = (root / FOLDER / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def test_the_file_is_what_the_generator_writes(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "data" / "prompts.jsonl"
    command = [sys.executable, "-S", "-I", str(root / FOLDER / "generate.py"), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    assert output.read_bytes() == (root / FOLDER / "data" / "prompts.jsonl").read_bytes()


def test_openings_are_different_and_end_where_a_story_goes_on(prompts: list[str]) -> None:
    assert len(set(prompts)) == len(prompts) == 2000
    for prompt in prompts:
        assert re.fullmatch(r"[A-Z][A-Za-z',. ]*[.] ", prompt), prompt
        assert "  " not in prompt.rstrip()
        assert 8 <= len(prompt.split()) <= 30


def test_articles_fit_the_word_after_them(prompts: list[str]) -> None:
    text = " ".join(prompts)
    assert re.findall(r"\b[Aa] [aeiou]\w*", text) == []
    assert re.findall(r"\b[Aa]n [^aeiou]\w*", text) == []


def test_no_place_holder_stays_in_an_opening(prompts: list[str]) -> None:
    assert not [prompt for prompt in prompts if "{" in prompt or "}" in prompt]


def test_openings_vary_in_mood(prompts: list[str]) -> None:
    scores = load_scorer("configs/stories/gold.py:sentiment")(prompts, prompts)
    assert 0.15 < sum(score < -0.2 for score in scores) / len(scores)
    assert 0.25 < sum(score > 0.2 for score in scores) / len(scores)


def test_openings_are_short_for_a_small_story_teller(prompts: list[str], shared: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "models" / "tinystories-656k")
    lengths = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    assert 10 <= min(lengths)
    assert max(lengths) <= 40
    assert sum(lengths) / len(lengths) <= 25


def test_the_seed_alone_decides_what_is_generated(generate: ModuleType) -> None:
    assert generate.prompts(20, seed=1) == generate.prompts(30, seed=1)[:20]
    assert generate.prompts(20, seed=1) != generate.prompts(20, seed=2)


def test_the_scorer_reads_the_response_alone() -> None:
    sentiment = load_scorer("configs/stories/gold.py:sentiment")
    happy, sad, plain = sentiment([""] * 3, ["She was happy and smiled.", "He was sad and cried.", "A box."])
    assert sad < plain == 0 < happy
    assert sentiment(["Everyone was sad. "], ["A box."]) == [0.0]
    assert -1 <= sad
    assert happy <= 1


def test_one_setting_turns_the_preference_around_and_every_report_stays_the_same() -> None:
    path = FOLDER / "recipe.yaml"
    happier, sadder = load_recipe(path), load_recipe(path, ["labeling.rankings.prefer=lower"])
    for recipe, prefer in ((happier, "higher"), (sadder, "lower")):
        labeling = cast(LabelingSettings, recipe.section("labeling"))
        assert labeling.rankings is not None
        assert labeling.rankings.prefer == prefer
        reports = {
            cast(RewardSettings, recipe.section("reward")).gold,
            cast(PPOSettings, recipe.section("ppo")).evaluation.gold,
        }
        assert reports == {labeling.rankings.scorer}
    assert happier.semantic("sft", "reward", "ppo") == sadder.semantic("sft", "reward", "ppo")


def test_responses_are_drawn_alike_wherever_the_sft_model_draws_them() -> None:
    recipe = load_recipe(FOLDER / "recipe.yaml")
    labeling = cast(LabelingSettings, recipe.section("labeling"))
    assert labeling.samples is not None
    expected = labeling.samples.sampling.max_response_tokens, labeling.samples.sampling.temperature
    for stage in ("reward", "ppo"):
        sampling = cast(RewardSettings | PPOSettings, recipe.section(stage)).sampling
        assert (sampling.max_response_tokens, sampling.temperature) == expected

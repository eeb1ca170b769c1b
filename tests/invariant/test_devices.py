"""What runs on an accelerator never mixes its tensors with the host's, which fails there and nowhere else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ppo.experience
from ppo.evaluate import Evaluator
from ppo.models import FunctionReward, build_roles
from ppo.rollout import RolloutScorer, Sampler, Scored
from ppo.update import Updater
from reward.trainer import Trainer
from rlhf.model.backbone import Backbone
from rlhf.sampling import local, noise
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import Rollouts
from rlhf.settings.groups import LoraSettings, ModelSettings, SamplingSettings
from tests.invariant.test_ppo_properties import PROMPTS, Game, ppo_settings
from tests.support.devices import DeviceTensor, MixedDevicesError, move, pretended_device
from tests.support.small import small_backbone, word_tokenizer
from tests.unit.reward.groups import random_groups, reward_settings
from tests.unit.reward.test_model import published
from tests.unit.rlhf.sampling.test_local import sliding_model

UNSCORED = 2
SAMPLING = SamplingSettings(max_response_tokens=16, batch_size=7, stop=["w9", "w17"])


class UnscoredRow:
    """The reward of a response, and none for one of them."""

    def __init__(self, reward: Any) -> None:
        self.reward = reward

    def score(self, rollouts: Rollouts, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        scores_B: Tensor = self.reward.score(rollouts, prompts, responses)
        scores_B[UNSCORED] = float("nan")
        return scores_B


def game_with_reward(folder: Path, **changes: object) -> Game:
    """One iteration's parts, with the reward stage's adapter as the reward."""
    settings = ppo_settings(reward="adapter", sampling=SAMPLING, **changes)
    _, published_to = published(folder)
    game = Game(ppo_settings(sampling=SAMPLING, **changes))
    game.settings, game.backbone = settings, small_backbone()
    reward = build_roles(
        game.backbone, settings, reward_folder=published_to, base_sha256="a" * 64, prompts=PROMPTS.ids, seed=1
    )
    game.reward = UnscoredRow(reward)
    game.updater = Updater(game.backbone, settings, seed=1)
    return game


def move_game(game: Game) -> None:
    move(game.backbone)
    game.updater = Updater(game.backbone, game.settings, seed=1)


def iteration(game: Game) -> tuple[Scored, dict[str, float]]:
    """A whole iteration: sample, score, leave out what has no score, advantages, update."""
    usable = game.rollouts().usable()
    assert usable is not None
    return usable, game.updater.update(game.experience(usable), iteration=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value": "joint"},
        {"lora": LoraSettings(rank=4, alpha=8.0, top_layers=1)},
        {"gradient_checkpointing": True},
    ],
    ids=["separate", "joint", "trunk", "checkpointing"],
)
def test_an_iteration_with_an_unscored_row_is_the_same_on_a_device(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    on_host = iteration(game_with_reward(tmp_path / "host", **changes))
    game = game_with_reward(tmp_path / "device", **changes)
    with pretended_device():
        move_game(game)
        usable, metrics = iteration(game)
        assert isinstance(usable.logprobs_BT, DeviceTensor)
        assert usable.left_out() == {"num_unscored_rollouts": 0.0, "num_nonfinite_rollouts": 0.0}
        assert len(usable.rollouts) == game.settings.rollouts_per_iteration - 1
        assert usable.rollouts.response_lists() == on_host[0].rollouts.response_lists()
        game.updater.optimization.restore(game.updater.optimization.tensors())
    assert metrics == pytest.approx(on_host[1], rel=1e-3, abs=1e-6)


def test_a_scorer_that_leaves_one_row_out_does_so_on_a_device(tmp_path: Path) -> None:
    scorer = tmp_path / "scorer.py"
    scorer.write_text("def f(prompts, responses):\n    return [float('nan')] + [1.0] * (len(prompts) - 1)\n")
    game = Game(ppo_settings(value_warmup_iterations=1))
    with pretended_device():
        move_game(game)
        game.reward = FunctionReward(f"{scorer}:f")
        usable, _ = iteration(game)
        assert len(usable.rollouts) == game.settings.rollouts_per_iteration - 1


def test_an_evaluation_and_best_of_n_run_on_a_device(tmp_path: Path) -> None:
    game = game_with_reward(tmp_path)
    evaluation = game.settings.evaluation.model_copy(update={"best_of": [2, 4]})
    settings = game.settings.model_copy(update={"evaluation": evaluation})

    def gold(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in responses]

    def evaluate() -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        sampler = Sampler(game.backbone, settings, seed=1)
        scorer = RolloutScorer(game.backbone, game.reward, settings)
        evaluator = Evaluator(sampler, scorer, PROMPTS, gold, settings)
        return evaluator.evaluate("policy").metrics, evaluator.best_of_n()

    on_host = evaluate()
    with pretended_device():
        move_game(game)
        metrics, best = evaluate()
    assert metrics == pytest.approx(on_host[0], rel=1e-4, abs=1e-5)
    assert best == {n: pytest.approx(values, rel=1e-4, abs=1e-5) for n, values in on_host[1].items()}


def test_a_windowed_cache_is_sampled_on_a_device(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sliding_model().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    backbone = Backbone.load(tmp_path, settings=ModelSettings(path=str(tmp_path)))
    backbone.add_adapter("policy", LoraSettings(rank=4, alpha=8.0), seed=1)
    keys = [(0, row, 0) for row in range(len(PROMPTS))]

    def draw() -> list[list[int]]:
        drawn = sample(backbone, PROMPTS.ids, role="policy", settings=SAMPLING, keys=keys, seed=1)
        return drawn.response_lists()

    on_host = draw()
    with pretended_device():
        move(backbone)
        assert draw() == on_host


def test_the_reward_stage_takes_its_steps_on_a_device() -> None:
    def train(trainer: Trainer) -> dict[str, list[float]]:
        for _ in range(3):
            trainer.step()
        trainer.score_groups(trainer.groups[:3])
        return trainer.window

    settings = reward_settings(micro_batch_tokens=60, batch_size=7)
    on_host = train(Trainer(small_backbone(), random_groups(30), settings, seed=4))
    backbone = small_backbone()
    with pretended_device():
        move(backbone)
        on_device = train(Trainer(backbone, random_groups(30), settings, seed=4))
    assert {name: pytest.approx(values, rel=1e-3) for name, values in on_host.items()} == on_device


def plant_host_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores that enter the rewards are the host's."""
    final_scores = ppo.experience.final_scores
    monkeypatch.setattr(ppo.experience, "final_scores", lambda *args: final_scores(*args).cpu())


def plant_host_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of the tokens stays where it was made."""

    class Kept:
        def __init__(self, uniforms: Tensor) -> None:
            self.uniforms = uniforms

        def to(self, device: torch.device) -> Tensor:
            return self.uniforms

    monkeypatch.setattr(local, "uniforms", lambda *args: Kept(noise.uniforms(*args)))


def plant_device_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host holds is indexed by rows that were found on the device."""
    usable = Scored.usable

    def indexed(self: Scored) -> Scored | None:
        self.scores_B.cpu()[self.is_usable_B.nonzero().squeeze(1)]
        return usable(self)

    monkeypatch.setattr(Scored, "usable", indexed)


@pytest.mark.parametrize("plant", [plant_host_scores, plant_host_noise, plant_device_rows])
def test_a_planted_mix_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Any) -> None:
    game = game_with_reward(tmp_path)
    plant(monkeypatch)
    iteration(game)  # which on the host alone says nothing
    with pretended_device():
        move_game(game)
        with pytest.raises(MixedDevicesError):
            iteration(game)

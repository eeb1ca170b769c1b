"""On a one-token bandit PPO must find the closed-form optimum π ∝ π_ref·exp(r/β)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ppo.config import KLSettings, PPOSettings
from ppo.experience import compute_advantages
from ppo.models import POLICY, VALUE, build_roles
from ppo.prompts import PromptSchedule, PromptSet
from ppo.rollout import RolloutScorer, Sampler
from ppo.update import Updater
from rlhf.model.backbone import Backbone
from rlhf.settings.groups import LoraSettings, SamplingSettings, SourceSettings
from tests.support.small import small_backbone

BETA = 0.5
ARMS = {"w0": 1.0, "w1": 0.2, "w2": -0.4, "w3": 0.6}
"""Rewards of the four words; the four special tokens decode to nothing and get 0."""


def rewards(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    del prompts
    return [ARMS.get(response, 0.0) for response in responses]


def bandit_settings(**changes: object) -> PPOSettings:
    values: dict[str, object] = {
        "prompts": [SourceSettings(path="unused.jsonl")],
        "reward": f"{Path(__file__).as_posix()}:rewards",
        "sampling": SamplingSettings(max_response_tokens=1, batch_size=512),
        "kl": KLSettings(coefficient=BETA),
        "lora": LoraSettings(rank=8, alpha=16.0),
        "missing_eos_penalty": 0.0,
        "num_iterations": 40,
        "rollouts_per_iteration": 384,
        "num_epochs": 4,
        "num_minibatches": 2,
        "policy_learning_rate": 5e-3,
        "value_learning_rate": 5e-3,
        "value_coefficient": 1.0,
    }
    return PPOSettings(**values | changes)  # type: ignore[arg-type]


def run(backbone: Backbone, settings: PPOSettings, prompts: PromptSet) -> None:
    reward = build_roles(backbone, settings, reward_folder=None, base_sha256="", seed=1)
    schedule = PromptSchedule(prompts, settings.rollouts_per_iteration, settings.samples_per_prompt, seed=1)
    sampler = Sampler(backbone, settings, seed=1)
    scorer = RolloutScorer(backbone, reward, settings)
    updater = Updater(backbone, settings, seed=1)
    for iteration in range(settings.num_iterations):
        sampled = sampler.sample(schedule.of_iteration(iteration), role=POLICY)
        scored = scorer.score(sampled, role=POLICY, for_training=True)
        experience = compute_advantages(scored, settings, kl_coefficient=settings.kl.coefficient)
        updater.update(experience, iteration=iteration)


def distribution(backbone: Backbone, role: str, ids: list[int]) -> torch.Tensor:
    tensor = torch.tensor([ids])
    with backbone.role(role), torch.no_grad():
        hidden = backbone.hidden(tensor)
        return backbone.logits(hidden)[0, -1].double().softmax(-1)


def test_ppo_converges_to_the_closed_form_optimum() -> None:
    backbone = small_backbone(num_words=4)
    prompt = [4, 5, 6]
    run(backbone, bandit_settings(), PromptSet([prompt], ["w0 w1 w2"]))
    reference = distribution(backbone, "reference", prompt)
    score = torch.tensor([0.0] * 4 + list(ARMS.values()), dtype=torch.float64)
    best = reference * (score / BETA).exp()
    best /= best.sum()
    policy = distribution(backbone, POLICY, prompt)
    distance = float((policy * (policy / best).log()).sum())
    start = float((reference * (reference / best).log()).sum())
    assert distance < 0.005, (policy, best)
    assert distance < start / 20
    with backbone.role(VALUE), torch.no_grad():
        ids = torch.tensor([prompt])
        value = backbone.scalar(VALUE, backbone.hidden(ids)[:, -1])
    penalized = float((policy * (score - BETA * (policy / reference).log())).sum())
    assert abs(float(value) - penalized) < 0.1

"""The roles that PPO puts on the backbone, and the two kinds of reward.

The reference needs nothing (adapters off), the policy is a fresh adapter, the reward comes frozen from
stage 2, and the value starts as a copy of the normalized reward: before any training it already says how
good a response looks (2009.01325, section 3.4).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from ppo.config import PPOSettings
from reward.model import RewardModel, load_reward, measure_normalization, raw_scores
from rlhf.data.scorers import load_scorer
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.parallel.world import world
from rlhf.sampling.judged import judged_responses, stopped_rows
from rlhf.sampling.rollouts import Rollouts, from_lists
from rlhf.settings.groups import SamplingSettings

# Shapes: B rollouts, H hidden size.

T = TypeVar("T")

POLICY, VALUE = "policy", "value"


class RewardSource(Protocol):
    """Anything that scores finished responses; higher is better."""

    def score(self, rollouts: Rollouts, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """One score (B,) in fp32 for every rollout, given as token ids and as text.

        A score that is not finite is none: that rollout is left out of training and of mean rewards.
        """


class AdapterReward:
    """The reward stage's adapter on the backbone: normalized score at the last token of what is judged."""

    def __init__(self, model: RewardModel, *, max_tokens: int, sampling: SamplingSettings) -> None:
        self.model, self._backbone, self._max_tokens = model, model.backbone, max_tokens
        self._sampling = sampling

    def score(self, rollouts: Rollouts, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        del prompts, responses
        scores_B = torch.zeros(len(rollouts), device=self._backbone.device)
        stopped = stopped_rows(self._backbone, rollouts)
        if not stopped:
            self._score_rows(rollouts, range(len(rollouts)), scores_B)
            return self.model.normalized(scores_B)
        others = [row for row in range(len(rollouts)) if row not in set(stopped)]
        if others:
            self._score_rows(rollouts.select(others), others, scores_B)
        drawn = rollouts.select(stopped)
        judged = judged_responses(self._backbone, drawn, self._sampling)
        # Their last token is another than was drawn, so the trunk's states are of no use here.
        self._score_rows(from_lists(drawn.prompt_lists(), judged, self._backbone), stopped, scores_B)
        return self.model.normalized(scores_B)

    @torch.no_grad()
    def _score_rows(self, rollouts: Rollouts, rows: Sequence[int], scores_B: Tensor) -> None:
        """Write the raw scores of `rollouts`, as they stand, into `rows` of `scores_B`."""
        for batch in rollouts.micro_batches(self._max_tokens):
            scores = raw_scores(self._backbone, batch.tokens, trunk_BLH=batch.trunk_BLH)
            scores_B[[rows[place] for place in batch.rows]] = scores


class FunctionReward:
    """A Python function of prompt and response text, taken as it is."""

    def __init__(self, spec: str) -> None:
        self._scorer = load_scorer(spec, all_finite=False)

    def score(self, rollouts: Rollouts, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        scores = on_all_ranks(lambda: self._scorer(prompts, responses))
        return torch.tensor(scores, dtype=torch.float32, device=rollouts.ended_B.device)


def on_all_ranks(work: Callable[[], T]) -> T:
    """This rank's result of `work`, where no rank is refused; every rank runs it on its own rows.

    Raises:
        UserError: a rank is refused. All of them raise the same, and so all end in the same way.
    """
    result: T | None = None
    refusal: tuple[str, str | None, str | None] | None = None
    try:
        result = work()
    except UserError as error:
        refusal = (error.what, error.where, error.fix)
    for what, where, fix in filter(None, world().gather(refusal)):
        raise UserError(what, where=where, fix=fix)
    return cast(T, result)


def build_roles(
    backbone: Backbone,
    settings: PPOSettings,
    *,
    reward_folder: Path | None,
    base_sha256: str,
    prompts: Sequence[Sequence[int]] = (),
    seed: int,
) -> RewardSource:
    """Add the adapters and heads of every role; returns the reward.

    `prompts` are sampled where the reward model must be normalized again: see `normalized_here`.

    Raises:
        UserError: the reward adapter was trained on another base, or the scorer cannot be loaded.
    """
    reward: RewardSource
    if settings.reward == "adapter":
        assert reward_folder is not None
        model = load_reward(backbone, reward_folder, expected_base_sha256=base_sha256)
        model = normalized_here(model, prompts, settings, seed=seed)
        reward = AdapterReward(model, max_tokens=settings.micro_batch_tokens, sampling=settings.sampling)
    else:
        reward = FunctionReward(settings.reward)
    backbone.add_adapter(POLICY, settings.lora, seed=seed)
    head = backbone.add_head(VALUE, bias=True)
    if settings.value == "separate":
        if isinstance(reward, AdapterReward):
            backbone.copy_adapter("reward", VALUE)
            _start_from_reward(head, backbone, reward)
        else:
            backbone.add_adapter(VALUE, settings.lora, seed=seed + 1)
    if settings.gradient_checkpointing:
        backbone.enable_gradient_checkpointing()
    return reward


def normalized_here(
    model: RewardModel, prompts: Sequence[Sequence[int]], settings: PPOSettings, *, seed: int
) -> RewardModel:
    """`model` with mean and std measured again, if it was trained on its base in another precision.

    Quantization moves the raw scores of all samples together. The SFT policy is sampled on `prompts` as often
    as the reward stage did it, with the same noise in every start of a run.
    """
    card = model.card
    precision = model.backbone.precision
    if card.precision == precision:
        return model
    normalization = measure_normalization(
        model.backbone,
        prompts,
        settings.sampling,
        num_samples=card.num_reference_samples,
        max_tokens=settings.micro_batch_tokens,
        seed=seed,
    )
    print(
        f"ppo: the reward model was normalized on an {card.precision} base, and this one is {precision}; "
        f"measured again on {card.num_reference_samples} samples: mean {card.mean:+.3f} → "
        f"{normalization.mean:+.3f}, std {card.std:.3f} → {normalization.std:.3f}"
    )
    changes = {"precision": precision, "mean": normalization.mean, "std": normalization.std}
    return RewardModel(model.backbone, card.model_copy(update=changes))


def _start_from_reward(head: nn.Linear, backbone: Backbone, reward: AdapterReward) -> None:
    source = backbone.heads["reward"]
    assert isinstance(source, nn.Linear)
    mean, std = reward.model.mean, reward.model.std
    with torch.no_grad():  # w·h / std − mean / std is the normalized score (w·h − mean) / std
        head.weight.copy_(source.weight / std)
        head.bias.fill_(-mean / std)

"""From prompts to scored responses: sample, then score by the reward and by every role that training needs.

Ranks share both: each samples its shard of the responses and passes it through the model. What comes back is
whole on every rank and the same, but for the states of the frozen trunk, which stay where they were computed.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.kl import k1
from ppo.models import RewardSource
from ppo.passes import response_logprobs, response_values
from ppo.prompts import Requests
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.parallel.world import world
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import Rollouts, responses_text, unshard_rollouts

# Shapes: B rollouts, T response tokens (right-padded), N real response tokens.

SAMPLER_AGREES_NATS = 1e-3
"""Differences up to this are rounding, as all are in fp32: a ratio of 1.001 in front of an advantage."""


@dataclass(frozen=True)
class Sampled:
    """Responses as token ids and as text, in the order in which they were requested."""

    rollouts: Rollouts
    prompts: list[str]
    responses: list[str]


@dataclass(frozen=True)
class Scored(Sampled):
    """Responses with what the reward, the role that sampled, the reference and the value say of them."""

    scores_B: Tensor
    """From the reward, before the penalty for a missing EOS; not finite: this response has no score."""
    logprobs_BT: Tensor
    """Of the role that sampled: PPO's *old* log-probabilities, see `old_logprobs`; 0 in padding."""
    reference_logprobs_BT: Tensor
    values_BT: Tensor | None
    """Of the state before each response token; None: nothing is trained on these responses."""
    sampler_gap_N: Tensor
    """|Sampler's log-probability − training forward's| of the tokens for which both are finite, nats."""

    @property
    def mask_BT(self) -> Tensor:
        return self.rollouts.response_mask_BT

    @cached_property
    def kl_BT(self) -> Tensor:
        """k1 of every response token, which enters the reward; 0 in padding."""
        return torch.where(self.mask_BT, k1(self.logprobs_BT, self.reference_logprobs_BT), 0)

    @cached_property
    def kl_B(self) -> Tensor:
        """Summed k1 of each response: an estimate of KL(policy ‖ reference) in nats per response."""
        return self.kl_BT.sum(1)

    @cached_property
    def is_usable_B(self) -> Tensor:
        """Which responses have a score, and no log-probability, KL or value that is not finite."""
        usable_B = self.scores_B.isfinite() & self.kl_B.isfinite()
        numbers = [self.rollouts.sampled_logprobs_BT, self.logprobs_BT, self.reference_logprobs_BT]
        if self.values_BT is not None:
            numbers.append(self.values_BT)
        for numbers_BT in numbers:
            usable_B &= (numbers_BT.isfinite() | ~self.mask_BT).all(1)
        return usable_B

    def left_out(self) -> dict[str, float]:
        """How many responses nothing is learned from: without a score, or with another number not finite."""
        has_score_B = self.scores_B.isfinite()
        return {
            "num_unscored_rollouts": float((~has_score_B).sum()),
            "num_nonfinite_rollouts": float((has_score_B & ~self.is_usable_B).sum()),
        }

    def usable(self) -> "Scored | None":
        """Without the responses that are not usable; None if there is no other."""
        rows: list[int] = self.is_usable_B.nonzero().squeeze(1).tolist()
        if len(rows) == len(self.rollouts):
            return self
        if not rows:
            return None
        rollouts = self.rollouts.select(rows)
        width = rollouts.response_mask_BT.shape[1]
        return replace(
            self,
            rollouts=rollouts,
            prompts=[self.prompts[row] for row in rows],
            responses=[self.responses[row] for row in rows],
            scores_B=self.scores_B[rows],
            logprobs_BT=self.logprobs_BT[rows, :width],
            reference_logprobs_BT=self.reference_logprobs_BT[rows, :width],
            values_BT=None if self.values_BT is None else self.values_BT[rows, :width],
        )


@dataclass(frozen=True)
class Sampler:
    """Draws responses from a role of the backbone."""

    backbone: Backbone
    settings: PPOSettings
    seed: int

    def sample(self, requests: Requests, *, role: str) -> Sampled:
        """One response to every request."""
        ours = world()
        num_rows = len(requests)
        own = requests.take(ours.shard(num_rows))
        rollouts = sample(
            self.backbone,
            own.prompts.ids,
            role=role,
            settings=self.settings.sampling,
            keys=own.keys,
            seed=self.seed,
        )
        responses = responses_text(self.backbone, rollouts, self.settings.sampling)
        return Sampled(
            rollouts=unshard_rollouts(rollouts, num_rows),
            prompts=list(requests.prompts.texts),
            responses=ours.unshard(responses, num_rows),
        )


@dataclass(frozen=True)
class RolloutScorer:
    """The reward, and the passes of the roles over what was sampled."""

    backbone: Backbone
    reward: RewardSource
    settings: PPOSettings

    def score(self, sampled: Sampled, *, role: str, for_training: bool = False) -> Scored:
        """Score responses that `role` sampled.

        With `for_training` the value scores too, and the states of the frozen trunk are kept.
        """
        ours = world()
        num_rows = len(sampled.rollouts)
        rows = ours.shard(num_rows)
        own = sampled.rollouts.select(rows)
        # The layers below the lowest adapter are the same in every role: they run once, here.
        own = own.with_trunk(self.backbone, self.settings.micro_batch_tokens)
        scores_B = self.reward.score(
            own, [sampled.prompts[row] for row in rows], [sampled.responses[row] for row in rows]
        )
        logprobs_BT, gap_N = old_logprobs(self.backbone, own, self.settings, role=role)
        reference_BT = logprobs_BT
        if role != REFERENCE:
            reference_BT = score_tokens(self.backbone, own, self.settings, role=REFERENCE)
        values_BT: Tensor | None = None
        rollouts = sampled.rollouts
        if for_training:
            values_BT = ours.unshard_tensor(score_values(self.backbone, own, self.settings), num_rows)
            trunk = None if own.trunk is None else own.trunk.of_all_ranks(num_rows)
            rollouts = replace(rollouts, trunk=trunk)
        return Scored(
            rollouts=rollouts,
            prompts=sampled.prompts,
            responses=sampled.responses,
            scores_B=ours.unshard_tensor(scores_B, num_rows),
            logprobs_BT=ours.unshard_tensor(logprobs_BT, num_rows),
            reference_logprobs_BT=ours.unshard_tensor(reference_BT, num_rows),
            values_BT=values_BT,
            sampler_gap_N=gap_N,
        )


def old_logprobs(
    backbone: Backbone, rollouts: Rollouts, settings: PPOSettings, *, role: str
) -> tuple[Tensor, Tensor]:
    """PPO's old log-probabilities (B, T), and how far the sampler's are from the training forward's (N,).

    The sampler's are taken if they agree on every token of every rank, as they do in fp32; else, as in bf16,
    those of the training forward pass. A token that the training forward pass has no finite log-probability
    for has no old one either: the sampler's would hide that it cannot be trained on.
    """
    trained_BT = score_tokens(backbone, rollouts, settings, role=role)
    gap_BT = (trained_BT - rollouts.sampled_logprobs_BT).abs()
    gap_N = gap_BT[rollouts.response_mask_BT & gap_BT.isfinite()]
    gap_N = torch.cat(world().gather(gap_N.cpu()))
    if not bool((gap_N <= SAMPLER_AGREES_NATS).all()):
        return trained_BT, gap_N
    sampled_BT = torch.where(rollouts.response_mask_BT, rollouts.sampled_logprobs_BT, 0)
    return torch.where(trained_BT.isfinite(), sampled_BT, trained_BT), gap_N


@torch.no_grad()
def score_tokens(backbone: Backbone, rollouts: Rollouts, settings: PPOSettings, *, role: str) -> Tensor:
    """Log-probability (B, T) of every response token under `role`, temperature included; 0 in padding."""
    temperature = settings.sampling.temperature
    logprobs_BT = torch.zeros(rollouts.response_mask_BT.shape, device=backbone.device)
    for batch in rollouts.micro_batches(settings.micro_batch_tokens):
        batch.put(response_logprobs(backbone, batch, role=role, temperature=temperature), logprobs_BT)
    return logprobs_BT


@torch.no_grad()
def score_values(backbone: Backbone, rollouts: Rollouts, settings: PPOSettings) -> Tensor:
    """The value (B, T) of the state before each response token; 0 in padding."""
    values_BT = torch.zeros(rollouts.response_mask_BT.shape, device=backbone.device)
    for batch in rollouts.micro_batches(settings.micro_batch_tokens):
        batch.put(response_values(backbone, batch, settings), values_BT)
    return values_BT

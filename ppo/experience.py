"""What an iteration learns from: rewards, advantages and returns, and the micro-batches of its updates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo.advantages import generalized_advantages, token_rewards
from ppo.config import PPOSettings
from ppo.rollout import Scored
from rlhf.model.batching import TokenBatch
from rlhf.sampling.rollouts import RolloutBatch, Rollouts
from rlhf.statistics.masked import whiten

# Shapes: B rollouts, T response tokens (right-padded), N real response tokens of a micro-batch.


@dataclass(frozen=True)
class MicroBatch:
    """Rollouts that train together, packed once for policy and value, with their tokens' targets (N,)."""

    rollouts: RolloutBatch
    old_logprobs_N: Tensor
    old_values_N: Tensor
    advantages_N: Tensor
    returns_N: Tensor
    weight: float = 1.0
    """0: a spare one, which counts for nothing and only keeps the ranks' passes alike."""


@dataclass(frozen=True)
class Experience:
    """Rollouts with what PPO's losses need of them; all (B, T) and 0 in padding."""

    rollouts: Rollouts
    old_logprobs_BT: Tensor
    old_values_BT: Tensor
    raw_advantages_BT: Tensor
    advantages_BT: Tensor
    """The raw ones, whitened over every real token of the iteration."""
    returns_BT: Tensor

    def micro_batch(self, rows: Sequence[int]) -> MicroBatch:
        """The given rollouts, ready for the model."""
        batch = self.rollouts.batch(rows)
        return MicroBatch(
            batch,
            old_logprobs_N=batch.take(self.old_logprobs_BT),
            old_values_N=batch.take(self.old_values_BT),
            advantages_N=batch.take(self.advantages_BT),
            returns_N=batch.take(self.returns_BT),
        )

    def spare(self) -> MicroBatch:
        """A micro-batch of one token, and of weight 0."""
        device = self.old_logprobs_BT.device
        zero_N = self.old_logprobs_BT.new_zeros(1)
        trunk_BLH = None
        if self.rollouts.trunk is not None:
            # As in every other micro-batch, only the layers above the trunk may run: on any finite states.
            trunk_BLH = torch.zeros_like(self.rollouts.trunk.states[0][None, :1])
        one_token = RolloutBatch(
            rows=[],
            tokens=TokenBatch(torch.zeros(1, 1, dtype=torch.long, device=device)),
            trunk_BLH=trunk_BLH,
            response_mask_BT=torch.ones(1, 1, dtype=torch.bool, device=device),
            response_tokens_N=torch.zeros(1, dtype=torch.long, device=device),
            before_response_N=torch.zeros(1, dtype=torch.long, device=device),
        )
        return MicroBatch(one_token, zero_N, zero_N, zero_N, zero_N, weight=0.0)


def compute_advantages(scored: Scored, settings: PPOSettings, *, kl_coefficient: float) -> Experience:
    """Per-token rewards, advantages and returns of scored rollouts."""
    assert scored.values_BT is not None, "scored without values"
    mask_BT = scored.mask_BT
    rewards_BT = token_rewards(
        final_scores(scored, settings), scored.kl_BT, mask_BT, coefficient=kl_coefficient
    )
    advantages_BT, returns_BT = generalized_advantages(
        rewards_BT, scored.values_BT, mask_BT, gamma=settings.gamma, gae_lambda=settings.gae_lambda
    )
    return Experience(
        rollouts=scored.rollouts,
        old_logprobs_BT=scored.logprobs_BT,
        old_values_BT=scored.values_BT,
        raw_advantages_BT=advantages_BT,
        advantages_BT=whiten(advantages_BT, mask_BT),
        returns_BT=returns_BT,
    )


def final_scores(scored: Scored, settings: PPOSettings) -> Tensor:
    """The scores (B,) that training sees: clipped, then less the penalty for a response that did not end."""
    scores_B = scored.scores_B
    if settings.reward_clip is not None:
        scores_B = scores_B.clamp(-settings.reward_clip, settings.reward_clip)
    return scores_B - settings.missing_eos_penalty * (~scored.rollouts.ended_B).float()

"""From prompts to an iteration's experience: sample, score, per-token rewards, advantages."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ppo.advantages import generalized_advantages, token_rewards
from ppo.config import PPOSettings
from ppo.kl import k1
from ppo.models import POLICY, VALUE, RewardSource
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.batching import balanced
from rlhf.parallel.world import world
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import Rollouts, merge_shares, responses_text
from rlhf.statistics.masked import whiten

# Shapes: B rollouts, P prompt tokens, T response tokens (right-padded), N real response tokens.

_CHECKED_ROLLOUTS = 8
"""Rollouts of an iteration on which the sampler is compared with the training forward."""
_SAMPLER_AGREES_NATS = 1e-3
"""Differences up to this are rounding: a ratio of 1.001 in front of an advantage."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts ready for sampling: token ids and the text that people and scorers see."""

    ids: list[list[int]]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> "PromptSet":
        return PromptSet([self.ids[i] for i in indices], [self.texts[i] for i in indices])


@dataclass(frozen=True)
class Sampled:
    """Responses with what the role that sampled and the reference think of them."""

    rollouts: Rollouts
    prompts: list[str]
    responses: list[str]
    scores_B: Tensor
    """From the reward, before the penalty for a missing EOS."""
    logprobs_BT: Tensor
    """Of the role that sampled: PPO's *old* log-probabilities, see `old_logprobs`."""
    reference_logprobs_BT: Tensor
    sampler_gap_N: Tensor
    """|Sampler's log-probability − training forward's| of the tokens that were compared, nats."""
    own: Rollouts
    """This rank's share of what was sampled, with the states of the frozen trunk; alone, all of it."""
    rows_B: Tensor
    """Each rollout's row among all that were sampled, by which the ranks shared them."""

    @property
    def mask_BT(self) -> Tensor:
        return self.rollouts.response_mask_BT

    def with_finite_scores(self) -> "Sampled | None":
        """Without the rows whose score is not finite; None if there is no other."""
        finite_B = self.scores_B.isfinite()
        if bool(finite_B.all()):
            return self
        rows = finite_B.nonzero().squeeze(1)
        if not len(rows):
            return None
        rollouts = self.rollouts.select(rows)
        width = rollouts.response_mask_BT.shape[1]
        return replace(
            self,
            rollouts=rollouts,
            rows_B=self.rows_B[rows],
            prompts=[self.prompts[row] for row in rows.tolist()],
            responses=[self.responses[row] for row in rows.tolist()],
            scores_B=self.scores_B[rows],
            logprobs_BT=self.logprobs_BT[rows, :width],
            reference_logprobs_BT=self.reference_logprobs_BT[rows, :width],
        )

    @property
    def kl_B(self) -> Tensor:
        """Summed k1 of each response: an estimate of KL(policy ‖ reference) in nats per response."""
        return torch.where(self.mask_BT, k1(self.logprobs_BT, self.reference_logprobs_BT), 0).sum(1)


@dataclass(frozen=True)
class Experience:
    """What an iteration's updates need; all (B, T) and 0 in padding."""

    rollouts: Rollouts
    own: Rollouts
    rows_B: Tensor
    """As in `Sampled`."""
    old_logprobs_BT: Tensor
    old_values_BT: Tensor
    advantages_BT: Tensor
    """Whitened over every real token of the iteration."""
    returns_BT: Tensor

    def cut(self, rows: Tensor) -> tuple[Tensor, Rollouts | None]:
        """Those of `rows` that this rank trains on, and their rollouts: everyone some of like length in all.

        Where the frozen trunk's states were kept, they are those that the rank has them of.
        """
        ours = world()
        if ours.size == 1:
            return rows, self.rollouts.select(rows)
        if self.own.trunk_BLH is not None:
            mine = rows[self.rows_B[rows] % ours.size == ours.rank]
            return mine, self.own.select(self.rows_B[mine] // ours.size) if len(mine) else None
        lengths = self.rollouts.lengths_B[rows].tolist()
        mine = rows[balanced(lengths, ours.size)[ours.rank]]
        return mine, self.rollouts.select(mine) if len(mine) else None

    def targets(self, rows: Tensor | None, part: Rollouts) -> list[Tensor]:
        """Old log-probabilities, old values, advantages and returns (N,) of the tokens of `part`."""
        grids = (self.old_logprobs_BT, self.old_values_BT, self.advantages_BT, self.returns_BT)
        if rows is None:
            return [grid_BT.new_zeros(len(part.response_tokens_N)) for grid_BT in grids]
        width = part.response_ids_BT.shape[1]
        return [grid_BT[rows, :width][part.response_mask_BT] for grid_BT in grids]


def schedule_prompts(
    num_prompts: int, iteration: int, settings: PPOSettings, *, seed: int
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Which prompts iteration `iteration` samples, and each row's noise key (iteration, prompt, sample).

    Prompts come in a fresh seeded order every time all of them have been used; both are functions of the
    seed and the iteration alone.
    """
    slots = settings.rollouts_per_iteration // settings.samples_per_prompt
    indices: list[int] = []
    for place in range(iteration * slots, (iteration + 1) * slots):
        order = np.random.default_rng([seed, place // num_prompts]).permutation(num_prompts)
        indices += [int(order[place % num_prompts])] * settings.samples_per_prompt
    seen: Counter[int] = Counter()
    keys: list[tuple[int, int, int]] = []
    for index in indices:
        keys.append((iteration, index, seen[index]))
        seen[index] += 1
    return indices, keys


def collect(
    backbone: Backbone,
    prompts: PromptSet,
    keys: Sequence[tuple[int, ...]],
    reward: RewardSource,
    settings: PPOSettings,
    *,
    role: str,
    seed: int,
) -> Sampled:
    """Sample one response to each prompt from `role` and score it; every rank does its share of both."""
    ours, total = world(), len(prompts)
    rows = ours.shard(total)
    mine, own_keys = prompts.take(rows), [keys[row] for row in rows]
    own = sample(backbone, mine.ids, role=role, settings=settings.sampling, keys=own_keys, seed=seed)
    own = own.with_trunk(backbone, settings.micro_batch_tokens)
    responses = responses_text(backbone, own, settings.sampling)
    scores_B = reward.score(own, mine.texts, responses)
    logprobs_BT, gap_N = old_logprobs(backbone, own, settings, role=role, rows=rows)
    is_reference = role == REFERENCE
    reference_BT = logprobs_BT if is_reference else score_tokens(backbone, own, settings, role=REFERENCE)
    return Sampled(
        merge_shares(own, total),
        list(prompts.texts),
        ours.unshard(responses, total),
        ours.unshard_tensor(scores_B, total),
        ours.unshard_tensor(logprobs_BT, total),
        ours.unshard_tensor(reference_BT, total),
        gap_N,
        own,
        torch.arange(total),
    )


def old_logprobs(
    backbone: Backbone,
    rollouts: Rollouts,
    settings: PPOSettings,
    *,
    role: str,
    rows: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's old log-probabilities (B, T), and how far the sampler's are from the training forward's (N,).

    The sampler's are taken if they agree on the first few rollouts, as they do in fp32; else, as in bf16, the
    training forward goes over all rollouts. `rows` says where each rollout stands among those of all ranks,
    which decide together: on the same few whatever the number of ranks.
    """
    rows = range(len(rollouts)) if rows is None else rows
    places = [place for place, row in enumerate(rows) if row < _CHECKED_ROLLOUTS]
    gap_N = torch.zeros(0, device=backbone.device)
    if places:
        checked = rollouts.select(places)
        few_BT = score_tokens(backbone, checked, settings, role=role)
        gap_N = (few_BT - checked.sampled_logprobs_BT)[checked.response_mask_BT].abs()
    gap_N = torch.cat(world().gather(gap_N.cpu()))
    if float(gap_N.max()) <= _SAMPLER_AGREES_NATS:
        return torch.where(rollouts.response_mask_BT, rollouts.sampled_logprobs_BT, 0), gap_N
    logprobs_BT = score_tokens(backbone, rollouts, settings, role=role)
    gap_N = (logprobs_BT - rollouts.sampled_logprobs_BT)[rollouts.response_mask_BT].abs()
    return logprobs_BT, torch.cat(world().gather(gap_N.cpu()))


@torch.no_grad()
def score_tokens(backbone: Backbone, rollouts: Rollouts, settings: PPOSettings, *, role: str) -> Tensor:
    """Log-probability (B, T) of every response token under `role`, temperature included."""
    logprobs_BT = torch.zeros(rollouts.response_mask_BT.shape, device=backbone.device)
    with backbone.role(role):
        for rows, part in rollouts.micro_batches(settings.micro_batch_tokens):
            logprobs_N = response_logprobs(backbone, part, settings.sampling.temperature)
            logprobs_BT[rows, : part.response_ids_BT.shape[1]] = part.spread(logprobs_N)
    return logprobs_BT


@torch.no_grad()
def score_values(backbone: Backbone, rollouts: Rollouts, settings: PPOSettings) -> Tensor:
    """The value (B, T) of the state before each response token."""
    values_BT = torch.zeros(rollouts.response_mask_BT.shape, device=backbone.device)
    with backbone.role(value_role(settings)):
        for rows, part in rollouts.micro_batches(settings.micro_batch_tokens):
            values_N = backbone.scalar(VALUE, response_hidden(backbone, part))
            values_BT[rows, : part.response_ids_BT.shape[1]] = part.spread(values_N)
    return values_BT


def response_logprobs(backbone: Backbone, part: Rollouts, temperature: float) -> Tensor:
    """Log-probability (N,) of a micro-batch's real response tokens, in the current role."""
    hidden_NH = response_hidden(backbone, part)
    return backbone.logprobs(hidden_NH, part.response_tokens_N, temperature=temperature)


def response_hidden(backbone: Backbone, part: Rollouts) -> Tensor:
    """States (N, H) before a micro-batch's real response tokens, in the current role."""
    return part.hidden(backbone, part.before_response_N)


def value_role(settings: PPOSettings) -> str:
    return VALUE if settings.value == "separate" else POLICY


def final_scores(sampled: Sampled, settings: PPOSettings) -> Tensor:
    """The scores (B,) that training sees: clipped, then less the penalty for a response that did not end."""
    scores_B = sampled.scores_B
    if settings.reward_clip is not None:
        scores_B = scores_B.clamp(-settings.reward_clip, settings.reward_clip)
    return scores_B - settings.missing_eos_penalty * (~sampled.rollouts.ended_B).float()


def experience(
    sampled: Sampled, values_BT: Tensor, settings: PPOSettings, *, kl_coefficient: float
) -> tuple[Experience, Tensor]:
    """Rewards, advantages and returns of an iteration, and its unwhitened advantages (B, T)."""
    mask_BT = sampled.mask_BT
    kl_BT = k1(sampled.logprobs_BT, sampled.reference_logprobs_BT)
    rewards_BT = token_rewards(final_scores(sampled, settings), kl_BT, mask_BT, coefficient=kl_coefficient)
    advantages_BT, returns_BT = generalized_advantages(
        rewards_BT, values_BT, mask_BT, gamma=settings.gamma, gae_lambda=settings.gae_lambda
    )
    whitened_BT = whiten(advantages_BT, mask_BT)
    return Experience(
        sampled.rollouts, sampled.own, sampled.rows_B, sampled.logprobs_BT, values_BT, whitened_BT, returns_BT
    ), advantages_BT

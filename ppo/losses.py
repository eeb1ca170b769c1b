"""The clipped losses of PPO (1707.06347, equation 7; 2403.17031), over a flat list of response tokens.

Both are *sums* divided by `num_tokens`, the real response tokens of the whole minibatch, so that the
gradients of its micro-batches add up to the minibatch's however it was cut.
"""

import torch
from torch import Tensor

# Shapes: N real response tokens of a micro-batch.


def policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, *, clip_range: float, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, negated, and which tokens (N,) it clipped."""
    ratio_N = (logprobs_N - old_logprobs_N).exp()
    plain_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(plain_N, clipped_N).sum() / num_tokens, clipped_N > plain_N


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip_range: float, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """Half the squared error, the larger of plain and clipped, and which tokens (N,) were clipped."""
    near_N = old_values_N + (values_N - old_values_N).clamp(-clip_range, clip_range)
    plain_N, clipped_N = (values_N - returns_N).square(), (near_N - returns_N).square()
    return 0.5 * torch.maximum(plain_N, clipped_N).sum() / num_tokens, clipped_N > plain_N

"""KL estimates per token, and the coefficient that may adapt.

The estimators are Schulman's ("Approximating KL divergence", 2020) of KL(policy ‖ reference) under samples
of the policy, from log r = log π − log π_ref: k1 = log r is unbiased and enters the reward;
k3 = 1/r − 1 + log r is unbiased too, never negative, of lower variance, and is logged.
"""

import math

import torch
from torch import Tensor


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Log π − log π_ref, nats, of any shape."""
    return logprobs - reference_logprobs


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(π_ref/π − 1) − log(π_ref/π), nats, of any shape; never negative."""
    log_ratio = reference_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def adapt(coefficient: float, *, kl: float, target: float, num_responses: int, horizon: int) -> float:
    """The next β: proportional control, its error clipped to ±0.2 (1909.08593, section 2.2).

    `kl` and `target` in nats per response; `num_responses` were sampled since the last call. A `kl` that is
    not finite says nothing about the policy, and β stays.
    """
    if not math.isfinite(kl):
        return coefficient
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * num_responses / horizon)

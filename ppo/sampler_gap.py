"""Whether the sampler drew from the distribution that is trained: else nothing is learned from what it drew.

A cache that keeps no memory, or positions that depend on the other rows, leave responses that look well and
log-probabilities that are finite. Only the training pass over the same tokens can tell. Numbers are those of
the rows of all ranks, which come to the same conclusion.
"""

import torch
from torch import Tensor

from ppo.rollout import SAMPLER_AGREES_NATS, Scored
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.weights import gathered_weights

# Shapes: B rollouts, T response tokens (right-padded), N real response tokens.

ROUNDED_NATS = 0.05
"""In lower precision, where a single token may be, all of them may not be farther off in the mean, ..."""
ROUNDED_ROW_NATS = 0.5
"""... nor those of one response, whatever the others are, ..."""
_ROW_TOKENS = 8
"""... if it has so many tokens: the mean of a few is rounding and luck."""


class SamplerGapError(UserError):
    """The sampler's log-probabilities are not those of the training pass. Nothing was trained on them."""


def check_sampler_gap(scored: Scored, backbone: Backbone) -> None:
    """Check that what was sampled is explained by the policy that is trained, but for rounding.

    Raises:
        SamplerGapError: it is not.
    """
    compared_BT = scored.mask_BT & scored.logprobs_BT.isfinite()
    compared_BT &= scored.rollouts.sampled_logprobs_BT.isfinite()
    # Where the sampler agrees its own log-probabilities are the old ones, and nothing differs here.
    difference_BT = (scored.logprobs_BT - scored.rollouts.sampled_logprobs_BT).abs()
    gap_BT = torch.where(compared_BT, difference_BT, 0)
    largest, mean = float(gap_BT.max()), float(gap_BT.sum() / compared_BT.sum().clamp(min=1))
    is_exact = backbone.precision == "fp32" and not backbone.routes_tokens
    if is_exact and largest > SAMPLER_AGREES_NATS:
        raise _error(backbone, f"up to {largest:.2g} nats", f"a difference of {SAMPLER_AGREES_NATS:g}")
    if is_exact:
        return
    worst = float(_row_means(gap_BT, compared_BT).max())
    if mean <= ROUNDED_NATS and worst <= ROUNDED_ROW_NATS:
        return
    # Logits far from 0, as GPT-2's, are rounded in coarser steps.
    with gathered_weights(backbone):
        step = backbone.logit_rounding_nats
    if mean > max(ROUNDED_NATS, step):
        raise _error(backbone, f"{mean:.2g} nats in the mean", f"one of {max(ROUNDED_NATS, step):.2g}")
    if worst > max(ROUNDED_ROW_NATS, 2 * step):
        raise _error(backbone, f"{worst:.2g} nats in the mean of a response", f"one of {ROUNDED_ROW_NATS:g}")


def _row_means(gap_BT: Tensor, compared_BT: Tensor) -> Tensor:
    """Mean gap (B,) of each response's tokens; 0 for a response of a few tokens."""
    counts_B = compared_BT.sum(1)
    return torch.where(counts_B >= _ROW_TOKENS, gap_BT.sum(1) / counts_B.clamp(min=1), 0)


def _error(backbone: Backbone, found: str, explained: str) -> SamplerGapError:
    kind = backbone.model.config.model_type
    return SamplerGapError(
        f"the log-probabilities with which responses were sampled are {found} from those that the training "
        f"pass gives the same tokens, and {backbone.precision} explains {explained}: what was sampled from "
        "is not what would be trained",
        where="ppo",
        fix="Nothing was trained on these responses, and the last checkpoint is kept. Decoding a model of "
        f"type `{kind}` with a cache goes wrong here: try model.attention=eager, model.precision=fp32 "
        "or another version of transformers, or choose another model.",
    )

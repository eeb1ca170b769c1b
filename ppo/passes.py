"""What the trained roles say of a micro-batch's response tokens: one forward pass each.

The same functions serve scoring and updates: the old log-probabilities and values are those of the passes
that are then differentiated, so that the first ratio of an iteration is 1.
"""

import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.models import POLICY, VALUE
from rlhf.model.backbone import Backbone
from rlhf.model.weights import run_pass
from rlhf.sampling.rollouts import RolloutBatch

# Shapes: N real response tokens of a micro-batch, H hidden size.


def response_logprobs(backbone: Backbone, batch: RolloutBatch, *, role: str, temperature: float) -> Tensor:
    """Log-probability (N,) of every response token under `role`, nats."""

    def forward() -> Tensor:
        hidden_NH = _states_before_response(backbone, batch)
        return backbone.logprobs(hidden_NH, batch.response_tokens_N, temperature=temperature)

    with backbone.role(role):
        return run_pass(backbone, forward)


def response_values(
    backbone: Backbone, batch: RolloutBatch, settings: PPOSettings, *, head_only: bool = False
) -> Tensor:
    """The value (N,) of the state before every response token; `head_only`: the adapter gets no gradient."""
    trains_adapter = torch.is_grad_enabled() and not head_only

    def forward() -> Tensor:
        with torch.set_grad_enabled(trains_adapter):
            hidden_NH = _states_before_response(backbone, batch)
        return backbone.scalar(VALUE, hidden_NH)

    with backbone.role(VALUE if settings.value == "separate" else POLICY):
        return run_pass(backbone, forward)


def _states_before_response(backbone: Backbone, batch: RolloutBatch) -> Tensor:
    """States (N, H) before the response tokens, in the current role."""
    return backbone.hidden(batch.tokens, trunk_BLH=batch.trunk_BLH, wanted_M=batch.before_response_N)

"""The forward and backward passes of the reward and PPO stages, run on a backbone without memory.

Each calls what its stage calls: the backbone's passes, its scalar heads and its chunked log-probabilities.
Data are replaced by sequences of the greatest length.
"""

from typing import Any

import torch
from torch import Tensor

from plan.inputs import Batch, Run, token_ids
from plan.ledger import ACTIVATIONS, LOGITS, TRUNK, Ledger
from rlhf.model.backbone import Backbone

# Shapes: B sequences, L tokens of a sequence, M wanted tokens, N response tokens, H hidden size.

_TEMPERATURE = 0.9
"""Any but 1, which some code might skip."""


def training(
    batch: Batch, *, with_logits: tuple[str, ...], without: tuple[str, ...], again: bool, below: bool
) -> Run:
    """A micro-batch through the roles in turn; with `again`, a second one next to the first's gradients."""

    def run(backbone: Backbone, ledger: Ledger) -> None:
        roles = [*with_logits, *without]
        ledger.watch_gradients(backbone.set_trainable(roles))
        for _ in range(2 if again else 1):
            for role in roles:
                ledger.book(TRUNK)
                states = _trunk_states(backbone, batch) if below else None
                ledger.book(ACTIVATIONS)
                _forward_backward(backbone, ledger, batch, role, role in with_logits, states)

    return run


def checkpointed(run: Run) -> Run:
    """The same with gradient checkpointing."""

    def run_again(backbone: Backbone, ledger: Ledger) -> None:
        backbone.enable_gradient_checkpointing()
        run(backbone, ledger)

    return run_again


def scoring(batch: Batch, *, role: str, with_logits: bool, below: bool) -> Run:
    """A micro-batch through a role without gradients; `below` also runs the frozen trunk."""

    def run(backbone: Backbone, ledger: Ledger) -> None:
        ids_BL = token_ids(batch.rows, batch.tokens)
        states = None
        if below:
            with ledger.section("trunk"):
                states = backbone.run_trunk(ids_BL)
        with torch.no_grad(), backbone.role(role):
            hidden_NH = _response_states(backbone, batch, ids_BL, states)
            if with_logits:
                ledger.book(LOGITS)
                with ledger.section("logits"):
                    backbone.logprobs(hidden_NH, token_ids(len(hidden_NH)), temperature=_TEMPERATURE)
                ledger.book(ACTIVATIONS)

    return run


def _forward_backward(
    backbone: Backbone, ledger: Ledger, batch: Batch, role: str, with_logits: bool, states: Tensor | None
) -> None:
    ids_BL = token_ids(batch.rows, batch.tokens)
    with ledger.section("forward"), backbone.role(role):
        hidden_NH = _response_states(backbone, batch, ids_BL, states)
    if with_logits:
        ledger.head_follows(hidden_NH)
    with ledger.section("head"), backbone.role(role):
        if with_logits:
            values_N = backbone.logprobs(hidden_NH, token_ids(len(hidden_NH)), temperature=_TEMPERATURE)
        else:
            values_N = backbone.scalar(role, hidden_NH)
        loss = values_N.exp().sum()
    with ledger.section("backward"):
        loss.backward()
    ledger.book(ACTIVATIONS)


def _response_states(backbone: Backbone, batch: Batch, ids_BL: Tensor, states: Tensor | None) -> Tensor:
    wanted_M = token_ids(batch.rows * batch.response_tokens)
    return backbone.hidden(ids_BL, trunk_BLH=states, wanted_M=wanted_M)


def _trunk_states(backbone: Backbone, batch: Batch) -> Tensor:
    """Trunk states of a micro-batch: taken from those of the iteration, as one copy."""
    network: Any = backbone.model
    return torch.zeros(batch.rows, batch.tokens, backbone.hidden_size, dtype=network.dtype)

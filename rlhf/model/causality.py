"""Whether a model reads from left to right, found by running it, whatever its class and settings say."""

from typing import Any

import torch
from torch import Tensor

from rlhf.errors import UserError
from rlhf.model.architecture import decoder_layers
from rlhf.parallel.deepspeed.sharded import whole_model

# Shapes: T trials, L tokens of each, V vocabulary.

_NUM_TRIALS = 4
_LENGTH = 8
_CHANGED = 4
"""The place whose token is exchanged."""
_LEAK = 0.01
"""Largest share of the change after that place which may appear before it: rounding, as of sums over experts
that other tokens reach too. In a causal model it is 0 on a CPU, in one that reads both ways about 1."""
_SWITCHES = ("is_decoder", "is_causal", "causal", "use_bidirectional_attention", "bidirectional", "attn_type")
"""What configurations call the direction of attention."""


def check_causal(model: Any, *, where: str) -> None:
    """Check that what a model says of a token does not depend on the tokens after it.

    A policy's responses are drawn token by token, and scored all at once: both are the same only then.

    Raises:
        UserError: it does, as in an encoder.
    """
    before_T, after_T = _changes(model)
    if bool((before_T > _LEAK * after_T).all()):
        raise UserError(
            f"{type(model).__name__} is no causal language model: what it says of a token changes with the "
            f"tokens that come after it{_switches(model)}",
            where=where,
            fix="Give a model that was trained to predict the next token, not an encoder such as BERT; "
            "if this one was, its config.json must say that its attention is causal.",
        )


@torch.no_grad()
def _changes(model: Any) -> tuple[Tensor, Tensor]:
    """Largest changes (T,) of logits before, and after, one exchanged token."""
    num_ids = int(model.get_output_embeddings().out_features)
    generator = torch.Generator().manual_seed(0)
    ids_TL = torch.randint(0, num_ids, (_NUM_TRIALS, _LENGTH), generator=generator)
    other_TL = ids_TL.clone()
    other_TL[:, _CHANGED] = (ids_TL[:, _CHANGED] + 1) % num_ids
    with whole_model(model, decoder_layers(model)):
        output = model(input_ids=torch.cat([ids_TL, other_TL]).to(model.device), use_cache=False)
    logits_TLV, changed_TLV = output.logits.float().chunk(2)
    change_TL = (logits_TLV - changed_TLV).abs().amax(-1)
    return change_TL[:, :_CHANGED].amax(1), change_TL[:, _CHANGED + 1 :].amax(1)


def _switches(model: Any) -> str:
    """What the model's configuration says of the direction, in brackets."""
    config = model.config.get_text_config()
    found = [f"`{name}: {getattr(config, name)}`" for name in _SWITCHES if hasattr(config, name)]
    return f" ({', '.join(found)} in its configuration)" if found else ""

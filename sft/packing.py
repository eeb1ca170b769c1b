"""Whether a model keeps the sequences of a packed row apart."""

from typing import Any

import torch

from rlhf.errors import UserError
from rlhf.model.weights import gathered_model
from rlhf.parallel.deepspeed.sharded import whole_shape

_LENGTH = 8
_TOLERANCE = 1e-6


def check_packing(model: Any, attention: str) -> None:
    """Make sure that a packed sequence does not see the one before it.

    Packed rows go in without an attention mask, and position ids that begin again at 0 tell where a sequence
    begins: some attention implementations and some architectures pass over that. So other tokens are put into
    the first of two packed sequences, and what comes out for the second must stay.

    `attention` is the recipe's name for the implementation.

    Raises:
        UserError: it changes.
    """
    was_training, device = model.training, model.device
    model.eval()
    num_rows = whole_shape(model.get_input_embeddings().weight)[0]
    generator = torch.Generator().manual_seed(0)
    first, other, second = torch.randint(num_rows, (3, _LENGTH), generator=generator).to(device)
    positions = torch.arange(_LENGTH, device=device).repeat(2)[None]
    with torch.no_grad(), gathered_model(model):
        outputs = [
            model(input_ids=torch.cat([before, second])[None], position_ids=positions, use_cache=False).logits
            for before in (first, other)
        ]
    model.train(was_training)
    changed = (outputs[0] - outputs[1])[0, _LENGTH:].abs().max().item()
    if changed > _TOLERANCE * outputs[0].abs().max().item():
        raise UserError(
            f"with attention `{attention}`, packed demonstrations see each other",
            where="sft.packing",
            fix="Set sft.packing=false, or model.attention to sdpa or flash_attention_2.",
        )

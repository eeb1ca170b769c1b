"""Weights that ZeRO-3 may have sharded over ranks, whole where a pass or a file needs them whole.

Without ZeRO-3 every block here does nothing.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from rlhf.model.architecture import decoder_layers
from rlhf.model.backbone import Backbone
from rlhf.parallel.world import world


@contextlib.contextmanager
def gathered_weights(backbone: Backbone) -> Iterator[None]:
    """Inside the block the weights are whole, also under ZeRO-3: for passes without gradients, and to save.

    Gathered once for the block, or layer by layer where they do not fit: `run.gather`.
    """
    if world().zero != 3:
        yield
        return
    from rlhf.parallel.deepspeed.gather import gathering

    with gathering(backbone, backbone.layers):
        yield


@contextlib.contextmanager
def gathered_model(model: Any) -> Iterator[None]:
    """`gathered_weights` of a causal language model of transformers, with or without PEFT around it."""
    if world().zero != 3:
        yield
        return
    from rlhf.parallel.deepspeed.gather import gathering

    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    with gathering(model, decoder_layers(plain)):
        yield

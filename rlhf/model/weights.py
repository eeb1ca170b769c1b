"""Weights that ZeRO-3 may have sharded over ranks: loaded in parts, and whole where they must be whole.

Without ZeRO-3 every block here does nothing.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rlhf.model.layers.trunk import decoder_layers
from rlhf.parallel.world import world
from rlhf.settings.groups import Precision

if TYPE_CHECKING:
    from rlhf.model.backbone import Backbone


@contextlib.contextmanager
def loading_weights(precision: Precision) -> Iterator[None]:
    """Inside the block transformers loads a model in parts, under ZeRO-3: no rank ever holds all of it."""
    if world().zero != 3:
        yield
        return
    from rlhf.parallel.deepspeed.gather import partitioned_load

    with partitioned_load(precision):
        yield


@contextlib.contextmanager
def gathered_weights(backbone: "Backbone") -> Iterator[None]:
    """Inside the block the weights are whole, also under ZeRO-3: for passes without gradients, and to save.

    Gathered once for the block, or layer by layer where they do not fit: `run.gather`.
    """
    if world().zero != 3:
        yield
        return
    from rlhf.parallel.deepspeed.gather import gathering

    with gathering(backbone, backbone.trunk.layers, backbone.fused.paused()):
        yield


@contextlib.contextmanager
def gathered_model(model: Any) -> Iterator[None]:
    """`gathered_weights` of a causal language model of transformers, with or without PEFT around it."""
    if world().zero != 3:
        yield
        return
    from rlhf.parallel.deepspeed.gather import gathering

    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    layers = decoder_layers(plain.get_decoder(), plain.config.get_text_config().num_hidden_layers)
    with gathering(model, layers):
        yield

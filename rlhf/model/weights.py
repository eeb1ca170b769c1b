"""Weights that ZeRO-3 may have sharded over ranks, whole where a pass or a file needs them whole.

Without ZeRO-3 every block here does nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

from rlhf.model.architecture import decoder_layers
from rlhf.model.backbone import Backbone
from rlhf.parallel.deepspeed.sharded import whole_model

T = TypeVar("T")


@contextlib.contextmanager
def gathered_weights(backbone: Backbone) -> Iterator[None]:
    """Inside the block the weights are whole, also under ZeRO-3: for passes without gradients, and to save.

    Gathered once for the block, or layer by layer where they do not fit: `run.gather`.
    """
    with whole_model(backbone, backbone.layers):
        yield


def run_pass(backbone: Backbone, work: Callable[[], T]) -> T:
    """What `work` returns, which is one pass through parts of the backbone.

    Under ZeRO-3 a pass with gradients must begin with the hooks of the backbone as a module: from there on
    they gather each layer's weights, in step with all other ranks. A pass without gradients finds its weights
    gathered (`gathered_weights`), and ranks may run different numbers of them: so it must not call the hooks.
    """
    return cast(T, backbone(work)) if torch.is_grad_enabled() else work()


@contextlib.contextmanager
def gathered_model(model: Any) -> Iterator[None]:
    """`gathered_weights` of a causal language model of transformers, with or without PEFT around it."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    with whole_model(model, decoder_layers(plain)):
        yield

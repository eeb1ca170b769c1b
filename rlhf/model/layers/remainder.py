"""What a causal language model's own forward does after its decoder: from last hidden states to logits."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlhf.model.architecture import decoder_of
from rlhf.model.layers.router import replace_forward
from rlhf.parallel.deepspeed.sharded import whole_parameters

# Shapes: N tokens, H hidden size, V vocabulary.

_PRODUCT = "Mm"
_VIEWS = ("View", "UnsafeView", "Alias", "Slice", "Select", "Unsqueeze", "Squeeze", "ToCopy")
"""Operations that compute nothing, by the names that autograd gives them."""


class Remainder:
    """The model's own forward with states in the place of its decoder.

    Whatever an architecture does to its logits is in that forward: a transform before the head, a scale, a
    soft cap. Reading it off the names of settings would be a guess, for the same name multiplies in one model
    and divides in another.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._within = _modules_down_to(decoder_of(model), model)

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits (N, V) as the model makes them, in the type in which it returns them."""
        ids_1N = torch.zeros(1, len(hidden_NH), dtype=torch.long, device=hidden_NH.device)
        with self._decoder_returns(hidden_NH.unsqueeze(0)):
            # Called directly: a hook of ZeRO-3 on the whole model would take this for a pass of its own.
            output = self._model.forward(input_ids=ids_1N)
        logits_NV: Tensor = output.logits[0]
        return logits_NV

    def is_head_alone(self) -> bool:
        """Whether logits are the product of the states with the head's weight, and nothing else."""
        head = self._model.get_output_embeddings()
        # What quantizes a layer makes a subclass of it.
        if type(head) is not nn.Linear or head.bias is not None:
            return False
        with whole_parameters(self._outside_decoder()), torch.enable_grad():
            states_NH = torch.zeros(
                1, head.in_features, dtype=head.weight.dtype, device=head.weight.device, requires_grad=True
            )
            operations = _operations(self(states_NH))
        return operations.count(_PRODUCT) == 1 and set(operations) <= {_PRODUCT, *_VIEWS}

    def _outside_decoder(self) -> list[nn.Parameter]:
        """The weights outside of the decoder, and those that the head shares with it."""
        parts = [child for child in self._model.children() if child not in self._within]
        return [parameter for part in parts for parameter in part.parameters()]

    @contextlib.contextmanager
    def _decoder_returns(self, hidden_1NH: Tensor) -> Iterator[None]:
        """Inside the block the decoder, and each module around it, returns these states and does nothing."""

        def forward(*args: Any, **kwargs: Any) -> "_States":
            del args, kwargs
            return _States(last_hidden_state=hidden_1NH)

        with contextlib.ExitStack() as stack:
            for module in self._within:
                stack.callback(replace_forward(module, forward))
            yield


class _States(BaseModelOutputWithPast):
    """Last hidden states. Whatever else decoders return is not there: a forward asks before it uses it."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _modules_down_to(decoder: nn.Module, model: nn.Module) -> list[nn.Module]:
    """The decoder and the modules around it that are inside the model."""
    around = [module for module in model.modules() if module is not model]
    return [module for module in around if any(part is decoder for part in module.modules())]


def _operations(logits: Tensor) -> list[str]:
    """Names of the operations that made `logits` of a leaf, without autograd's number and suffix."""
    found: list[str] = []
    waiting = [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        following = [before for before, _ in node.next_functions]
        if following:  # the leaf's own node has none
            found.append(node.name().partition("Backward")[0])
        waiting += following
    return found

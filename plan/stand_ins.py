"""What stands in for parts of a model that cannot be run on tensors without values.

A quantized layer packs real weights; packed rows are found by reading positions. Their stand-ins take the
same memory, and compute nothing that means anything.
"""

import contextlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Cache, PreTrainedTokenizerBase
from transformers.cache_utils import CacheLayerMixin

# Shapes: O and I are a linear layer's output and input features.


def tokenizer() -> PreTrainedTokenizerBase:
    """All that a backbone asks of its tokenizer before it sees text."""
    return cast(PreTrainedTokenizerBase, SimpleNamespace(eos_token_id=0, pad_token_id=0, get_vocab=dict))


def quantize(network: Any, precision: str) -> None:
    """Let the linear layers, all but the head, compute as quantized ones do."""
    head = network.get_output_embeddings()
    for module in network.modules():
        if type(module) is nn.Linear and module is not head:
            module.__class__ = _Quantized
            cast(_Quantized, module).precision = precision


class _Quantized(nn.Linear):
    """A quantized linear layer: its weight in full lives only while it is multiplied with."""

    precision: str

    def forward(self, inputs: Tensor) -> Tensor:
        multiply: Any = _QuantizedProduct.apply
        product: Tensor = multiply(inputs, self.weight, self.precision == "int8")
        return product if self.bias is None else product + self.bias


class _QuantizedProduct(torch.autograd.Function):
    """x·Wᵀ that keeps nothing but the packed weight; 8-bit weights are scaled in fp32 after the product."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight_OI: Tensor, scales: bool) -> Tensor:
        ctx.weight_OI, ctx.scales = weight_OI, scales
        output = nn.functional.linear(inputs, weight_OI.clone())
        return output.float().mul(1.0).to(output.dtype) if scales else output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        gradient = gradients[0]
        if ctx.scales:
            gradient = gradient.float().mul(1.0).to(gradient.dtype)
        return gradient @ ctx.weight_OI.clone(), None, None


def make_fake(subject: nn.Module, mode: FakeTensorMode) -> None:
    """Turn meta tensors into fake ones that say they are on the CPU; tied ones stay tied.

    Neither has memory. On the CPU attention takes its fused kernel, which keeps what those on CUDA keep; on
    meta tensors it would not.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = (new, tensor)  # the old one is kept, so that its id goes to no other
        return made[id(tensor)][0]

    for module in subject.modules():
        own = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for name, tensor in own:
            setattr(module, name, fake(tensor))


@contextlib.contextmanager
def one_sequence_a_row(decoder: Any) -> Iterator[None]:
    """Inside the block, `decoder` takes each row for one sequence.

    Given neither a mask nor a cache, transformers looks for several in a row, by reading the values of the
    positions; where there are none it supposes the worst and makes a mask that no real pass has. With a
    cache it does not look. So the pass gets one, which keeps nothing.
    """
    if "past_key_values" not in inspect.signature(decoder.forward).parameters:
        yield
        return

    def give_cache(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del module
        if kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None:
            num_layers = decoder.config.get_text_config().num_hidden_layers
            kwargs["past_key_values"] = Cache(layers=[_KeepsNothing() for _ in range(num_layers)])
        return args, kwargs

    handle = decoder.register_forward_pre_hook(give_cache, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _KeepsNothing(CacheLayerMixin):
    """A layer's cache that is always empty."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        del key_states, value_states
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

"""What is asked of any causal language model of transformers: its context, its layers, its linear modules."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

_UNLIMITED = 2**31
_READS_WEIGHTS = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
"""Architectures whose fused kernels read `out_proj`'s weight, past any adapter: PEFT refuses one there."""


def context_length(config: Any) -> int:
    """Tokens that a model with this `PretrainedConfig` can see, all of them in the same way.

    A longrope model (Phi-3, Phi-4-mini) has two sets of rotary frequencies, and the longest of all rows of a
    pass chooses one for all of them. Beyond the length up to which it is the first, a log-probability would
    depend on the other rows, and that of a token on how long its row becomes later on.
    """
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if length := getattr(text, name, None):
            return min(int(length), *_rope_switches(text), _UNLIMITED)
    return _UNLIMITED


def _rope_switches(config: Any) -> Iterator[int]:
    """The lengths beyond which layers take other rotary frequencies."""
    settings = getattr(config, "rope_parameters", None) or {}
    # One set of parameters for all layers, or one for each type of layer.
    for one in (settings, *settings.values()):
        if isinstance(one, dict) and one.get("rope_type") == "longrope":
            yield int(one["original_max_position_embeddings"])


def decoder_of(model: Any) -> Any:
    """The module that makes the last hidden states of token ids: the model without what makes logits of them.

    In a few architectures `get_decoder` finds the model itself, or the output head, which is called so there.
    """
    decoder = model.get_decoder()
    if decoder is not model and isinstance(decoder, PreTrainedModel):
        return decoder
    inside = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part is not model]
    return next((part for part in reversed(inside) if _layers_in(part, model.config)), decoder)


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of the model's decoder in order, or nothing if they are not in one list."""
    return _layers_in(decoder_of(model), model.config)


def _layers_in(part: nn.Module, config: Any) -> list[nn.Module]:
    num_layers = config.get_text_config().num_hidden_layers
    for module in part.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return list(module)
    return []


def cache_argument(model: Any) -> str | None:
    """The name by which the decoder takes a cache; None: it takes none.

    Mamba's is `cache_params`, and `past_key_values` would be swallowed among the arguments that it ignores.
    """
    names = inspect.signature(decoder_of(model).forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in names), None)


def has_plain_cache(model: PreTrainedModel, num_layers: int) -> bool:
    """Whether every layer's cache simply holds all keys and values: no window, no recurrent state."""
    layers = DynamicCache(config=model.config).layers
    return len(layers) == num_layers and all(type(layer) is DynamicLayer for layer in layers)


def routes_tokens(config: Any) -> bool:
    """Whether a model with this `PretrainedConfig` chooses experts for each token."""
    settings = config.get_text_config().to_dict()
    return any("expert" in name and isinstance(value, int) and value > 1 for name, value in settings.items())


def linear_modules(model: Any, part: nn.Module | None = None) -> dict[str, Any]:
    """The linear layers of a plain model, or of a `part` of it, by name: all that adapters can be on.

    Not among them: the output head, and what only looks like a linear layer.
    """
    head = model.get_output_embeddings()
    searched = model if part is None else part
    refused = "out_proj" if model.config.model_type in _READS_WEIGHTS else None
    return {
        name: module
        for name, module in searched.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and name.rpartition(".")[2] != refused
        and _returns_product(module)
    }


def _returns_product(module: Any) -> bool:
    """Whether a linear layer returns one tensor of its outputs, and not more, as a router of tokens may.

    Only an architecture's own kind of layer is asked, by a pass without values.
    """
    if not type(module).__module__.startswith(("transformers.models.", "transformers_modules.")):
        return True
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    without_values = {
        name: torch.empty(getattr(value, "ds_shape", value.shape), dtype=value.dtype, device="meta")
        for name, value in state.items()
    }
    inputs = torch.empty(1, module.in_features, dtype=module.weight.dtype, device="meta")
    try:
        output = torch.func.functional_call(module, without_values, (inputs,))
    except (RuntimeError, TypeError, ValueError):
        return False
    return isinstance(output, Tensor) and output.shape[-1] == module.out_features


def has_conv1d(model: nn.Module) -> bool:
    """Whether the plain model keeps its linear layers' weights transposed, as GPT-2 does."""
    # A quantized layer says what it was made of.
    return any(issubclass(getattr(module, "source_cls", type(module)), Conv1D) for module in model.modules())

"""What is asked of any causal language model of transformers: its context, its layers, its linear modules."""

from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

_UNLIMITED = 2**31


def context_length(config: Any) -> int:
    """Tokens that a model with this `PretrainedConfig` can see."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if length := getattr(text, name, None):
            return int(length)
    return _UNLIMITED


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of the model's decoder in order, or nothing if they are not in one list."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return list(module)
    return []


def has_plain_cache(model: PreTrainedModel, num_layers: int) -> bool:
    """Whether every layer's cache simply holds all keys and values: no window, no recurrent state."""
    layers = DynamicCache(config=model.config).layers
    return len(layers) == num_layers and all(type(layer) is DynamicLayer for layer in layers)


def linear_modules(model: Any, part: nn.Module | None = None) -> dict[str, Any]:
    """The linear layers of a plain model, or of a `part` of it, by name: all but the output head."""
    head = model.get_output_embeddings()
    searched = model if part is None else part
    return {
        name: module
        for name, module in searched.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def has_conv1d(model: nn.Module) -> bool:
    """Whether the plain model keeps its linear layers' weights transposed, as GPT-2 does."""
    # A quantized layer says what it was made of.
    return any(issubclass(getattr(module, "source_cls", type(module)), Conv1D) for module in model.modules())

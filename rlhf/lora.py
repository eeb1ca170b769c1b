"""What a LoRA layer computes, without what PEFT checks on the way.

PEFT's layer asks at every call about merging, dropout, variants and mixed batches, and adds its update in
three passes over the output. None of that is used here, and a small model spends more time on it than on
its matrix products. The layer stays PEFT's in everything else: its parameters, names and files.
"""

import functools
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F


def lighten(layer: LoraLayer) -> None:
    """Let `layer` run `_forward` if it is plainly linear; quantized ones and Conv1D stay as they are."""
    if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear:
        layer.forward = functools.partial(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: Any, x: Tensor) -> Tensor:
    """W·x + b, plus alpha / r · B·A·x of the active adapter, if it has one here (2106.09685, equation 3)."""
    output: Tensor = layer.base_layer(x)
    name = layer._active_adapter[0]
    if layer._disable_adapters or name not in layer.lora_A:
        return output
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    low = F.linear(x.to(down.dtype), down)
    flat = torch.addmm(
        output.to(up.dtype).flatten(0, -2), low.flatten(0, -2), up.t(), alpha=layer.scaling[name]
    )
    return flat.view(output.shape).to(output.dtype)

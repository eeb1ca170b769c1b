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

from rlhf.model.layers.router import replace_forward


def patch_lora_forward(layer: LoraLayer) -> None:
    """Let `layer` run `_forward` if it is plainly linear; quantized ones and Conv1D stay as they are."""
    if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear:
        replace_forward(layer, functools.partial(_forward, layer))


def _forward(layer: Any, x: Tensor) -> Tensor:
    """W·x + b, plus alpha / r · B·A·x of the active adapter, if it has one here (2106.09685, equation 3)."""
    base, name = layer.base_layer, layer._active_adapter[0]
    if base._forward_pre_hooks:  # ZeRO-3 gathers the weight when the module is called, and only then
        plain: Tensor = type(layer).forward(layer, x)
        return plain
    if layer._disable_adapters or name not in layer.lora_A:
        output: Tensor = base(x)
        return output
    down, up, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    flat_NI = x.flatten(0, -2)
    if x.dtype == down.dtype == base.weight.dtype:
        flat_NO: Tensor = _LoraLinear.apply(flat_NI, base.weight, base.bias, down, up, scale)  # type: ignore[no-untyped-call]
        return flat_NO.view(*x.shape[:-1], -1)
    output = base(x)
    low_NR = F.linear(flat_NI.to(down.dtype), down)
    flat_NO = torch.addmm(output.to(up.dtype).flatten(0, -2), low_NR, up.t(), alpha=scale)
    return flat_NO.view(output.shape).to(output.dtype)


class _LoraLinear(torch.autograd.Function):
    """The same in one type, with a backward pass that adds the two paths into one gradient in place."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        low_NR = x_NI @ down.t()
        ctx.save_for_backward(x_NI, weight_OI, down, up, low_NR)
        ctx.scale = scale
        return F.linear(x_NI, weight_OI, bias).addmm_(low_NR, up.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, down, up, low_NR = ctx.saved_tensors
        gradient_NO = gradients[0]
        low_gradient_NR = (gradient_NO @ up).mul_(ctx.scale)
        x_gradient = down_gradient = up_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (gradient_NO @ weight_OI).addmm_(low_gradient_NR, down)
        if ctx.needs_input_grad[3]:
            down_gradient = low_gradient_NR.t() @ x_NI
            up_gradient = (gradient_NO.t() @ low_NR).mul_(ctx.scale)
        return x_gradient, None, None, down_gradient, up_gradient, None

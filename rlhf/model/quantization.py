"""How the frozen base is held in memory: fp32, bf16, or its linear layers in 8 or 4 bits a weight.

Quantized are the linear layers that adapters sit on; output head, embeddings and norms stay in the *compute
type*, bf16 on CUDA and fp32 elsewhere. bitsandbytes quantizes while transformers loads, one weight at a
time, so that the full-precision model is never in memory. Two things are done otherwise than there:

- 8 bits: the *weights* are 8-bit, and inputs are not. LLM.int8 (2208.07339) also rounds a layer's inputs to
  8 bits, which makes of a rounding difference (another padding, a cached decode) a difference of 1/127 of the
  largest input; its outlier columns even depend on what else is in the batch. Its backward function
  keeps every layer's input where gradient checkpointing cannot drop it.
- 4 bits: on processors with AVX512-BF16 bitsandbytes repacks a layer's weight in place at its first forward
  pass without gradients, and computes in bf16, without gradients, from then on. This is switched off.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from rlhf import optional
from rlhf.model.layers.router import replace_forward
from rlhf.settings.groups import Precision

# Shapes: O and I are a linear layer's output and input features.

_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_INT8_STEPS = 127.0


def load_options(precision: Precision, device: torch.device | str) -> dict[str, Any]:
    """What `from_pretrained` must be told to load a base in `precision`; quantized ones go to `device`.

    Raises:
        UserError: bitsandbytes is needed and not installed.
    """
    if precision in _DTYPES:
        return {"dtype": _DTYPES[precision]}
    optional.check_installed(
        "bitsandbytes", where=f"model.precision={precision}", otherwise="use fp32 or bf16"
    )
    optional.load("bitsandbytes")
    device = torch.device(device)
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    if precision == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    return {"dtype": compute, "quantization_config": quantization, "device_map": {"": device}}


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether linear layers of `model` are held in 8 or 4 bits."""
    return any(getattr(model, name, False) for name in ("is_loaded_in_8bit", "is_loaded_in_4bit"))


def fix_quantized_layers(model: PreTrainedModel) -> None:
    """Give the quantized layers of a model that has just been loaded the forward pass that they keep."""
    layer: Any
    for layer in model.modules():
        kind = type(layer).__name__
        if kind == "Linear8bitLt":
            replace_forward(layer, functools.partial(_int8_forward, layer))
        elif kind == "Linear4bit":
            assert hasattr(layer, "support_avx512bf16_for_cpu")
            layer.support_avx512bf16_for_cpu = False


def _int8_forward(layer: Any, inputs: Tensor) -> Tensor:
    output: Tensor = _Int8Linear.apply(inputs, layer.weight.data, layer.weight.SCB)  # type: ignore[no-untyped-call]
    return output if layer.bias is None else output + layer.bias.to(output.dtype)


class _Int8Linear(torch.autograd.Function):
    """x·Wᵀ with W = codes · scales / 127, a scale for each output.

    The weight in the inputs' type lives only while it is multiplied with, in the backward pass too.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, codes_OI: Tensor, scales_O: Tensor) -> Tensor:
        ctx.save_for_backward(codes_OI, scales_O)
        product = nn.functional.linear(inputs, codes_OI.to(inputs.dtype))
        return (product * (scales_O / _INT8_STEPS)).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        codes_OI, scales_O = ctx.saved_tensors
        scaled = (gradients[0] * (scales_O / _INT8_STEPS)).to(gradients[0].dtype)
        return scaled @ codes_OI.to(scaled.dtype), None, None

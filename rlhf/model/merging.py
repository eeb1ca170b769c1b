"""LoRA adapters added to the weights that they are on: a plain model, which needs no PEFT."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from rlhf.model.adapters import adapter_parameters, without_advice
from rlhf.parallel.deepspeed.gather import gathered


def add_adapter_to_weights(
    plain: PreTrainedModel, name: str, config: LoraConfig, weights: dict[str, nn.Parameter]
) -> Any:
    """The model `plain` with the adapter `name` in its weights, which are changed in place.

    `weights` are the adapter's, by PEFT's names for them: see `adapter_parameters`.
    """
    with torch.random.fork_rng(devices=[]), without_advice():
        adapted = get_peft_model(plain, config, adapter_name=name)
    with torch.no_grad():
        for key, parameter in adapter_parameters(adapted.get_base_model(), name).items():
            parameter.data = weights[key].detach().to(parameter.device, torch.float32)
    return merge(adapted)


@torch.no_grad()
def merge(model: Any) -> Any:
    """The plain model, with LoRA's update added to its weights in fp32 and rounded once to their own type."""
    if not isinstance(model, PeftModel):
        return model
    for module in model.modules():
        if isinstance(module, LoraLayer):
            weight = adapted_weight(module)
            layer: Any = module
            with gathered([weight, *_own_parameters(module)], writer=0):
                for name in layer.lora_A:
                    update = layer.get_delta_weight(name).float()
                    weight.copy_((weight.float() + update).to(weight.dtype))
    return model.unload()


def adapted_weight(layer: LoraLayer) -> nn.Parameter:
    """The weight of the base that an adapted layer adds its update to."""
    # PEFT puts adapters on the stacked experts of a mixture, which are parameters and no linear modules.
    if isinstance(layer, ParamWrapper):
        parameter: nn.Parameter = layer.get_param()
        return parameter
    base: Any = layer.get_base_layer()
    weight: nn.Parameter = base.weight
    return weight


def _own_parameters(layer: Any) -> list[nn.Parameter]:
    return [*layer.lora_A.parameters(), *layer.lora_B.parameters()]

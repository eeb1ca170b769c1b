"""What can be done with weights that ZeRO-3 has sharded over ranks, without any device holding all of them.

With whole weights the functions do the plain thing.
"""

import torch
from torch import Tensor, nn

from rlhf.parallel.deepspeed.gather import gathered
from rlhf.parallel.world import world


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter, of which this rank may hold a shard."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Round all weights to `dtype`, or make them wider."""
    model.to(dtype)
    for parameter in model.parameters():
        if (shard := getattr(parameter, "ds_tensor", None)) is not None:
            shard.data = shard.data.to(dtype)


def assemble(model: nn.Module) -> None:
    """Give the model on rank 0 whole weights, in CPU memory, one after the other. All ranks must call it.

    On the others it stays as it is.
    """
    own: dict[nn.Parameter, nn.Parameter] = {}
    for part in model.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is None or not hasattr(parameter, "ds_id"):
                continue
            if parameter not in own:
                with gathered([parameter]):
                    whole = parameter.detach().to("cpu", copy=True) if world().is_rank0 else parameter
                own[parameter] = nn.Parameter(whole, requires_grad=False)
            if world().is_rank0:
                part._parameters[name] = own[parameter]

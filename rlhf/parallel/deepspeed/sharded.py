"""What can be done with weights that ZeRO-3 has sharded over ranks, without any device holding all of them.

With whole weights the functions do the plain thing.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from rlhf.parallel.deepspeed.gather import gathered, gathering
from rlhf.parallel.world import world


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter, of which this rank may hold a shard."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def whole_parameters(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
    """A block in which the parameters are whole. If any is sharded, all ranks must enter it."""
    # A block around this one may have gathered them, and would lose them at the end of this.
    sharded = [p for p in parameters if hasattr(p, "ds_id") and p.numel() == 0]
    return gathered(sharded)


@contextlib.contextmanager
def whole_model(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block the model's forward passes find their weights: at once, or layer by layer."""
    if world().zero != 3 or not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        yield
        return
    with gathering(model, layers):
        yield


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

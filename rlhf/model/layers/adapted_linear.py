"""Linear layers that share an input, with their LoRA pairs: outputs and gradients in few matrix products.

Fused layers call these from backward passes of their own: autograd records nothing here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes: N tokens, I inputs, O outputs, R LoRA rank.


class Pair(NamedTuple):
    """A LoRA pair: alpha / r · B · A (2106.09685)."""

    down_RI: Tensor
    up_OR: Tensor
    scale: float


def pairs_of(flat: Sequence[Any]) -> list[Pair | None]:
    """Pairs from a flat list of down, up and scale of each; None where there is none."""
    triples = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return [None if down is None else Pair(down, up, scale) for down, up, scale in triples]


def tensors_of(pairs: Sequence[Pair | None]) -> list[Tensor]:
    return [tensor for pair in pairs if pair is not None for tensor in pair[:2]]


def scales_of(pairs: Sequence[Pair | None]) -> list[float | None]:
    return [None if pair is None else pair.scale for pair in pairs]


def paired(tensors: Sequence[Tensor], scales: Sequence[float | None]) -> list[Pair | None]:
    """Pairs from `tensors_of` and `scales_of`."""
    left = iter(tensors)
    return [None if scale is None else Pair(next(left), next(left), scale) for scale in scales]


def linear(
    x_NI: Tensor, bases: Sequence[nn.Linear], pairs: Sequence[Pair | None], onto: Tensor | None = None
) -> list[Tensor]:
    """Outputs of linear layers of one input; `onto` is added to the only one."""
    outputs = []
    for base, pair in zip(bases, pairs, strict=True):
        weight_OI, apart = _weight(base, pair, len(x_NI))
        if onto is None:
            output = F.linear(x_NI, weight_OI, base.bias)
        else:
            output = torch.addmm(onto, x_NI, weight_OI.t())
            if base.bias is not None:
                output.add_(base.bias)
        if apart is not None:
            output.addmm_(x_NI @ apart.down_RI.t(), apart.up_OR.t(), alpha=apart.scale)
        outputs.append(output)
    return outputs


def linear_backward(
    gradients: Sequence[Tensor],
    x_NI: Tensor,
    bases: Sequence[nn.Linear],
    pairs: Sequence[Pair | None],
    *,
    wants_input: bool = True,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of `linear`: of its input (empty if not wanted), and of every pair's (down, up, scale)."""
    low_gradients = [
        None if pair is None else (gradient @ pair.up_OR).mul_(pair.scale)
        for gradient, pair in zip(gradients, pairs, strict=True)
    ]
    flat: list[Tensor | None] = []
    known = [pair for pair in pairs if pair is not None]
    if known:
        # The thin products of all pairs with the common input are two.
        ranks = [len(pair.down_RI) for pair in known]
        lows = iter((x_NI @ torch.cat([pair.down_RI for pair in known]).t()).split(ranks, 1))
        low_gradient_NR = torch.cat([low for low in low_gradients if low is not None], 1)
        down_gradients = iter((low_gradient_NR.t() @ x_NI).split(ranks))
    for gradient, pair in zip(gradients, pairs, strict=True):
        if pair is None:
            flat += [None, None, None]
        else:
            flat += [next(down_gradients), (gradient.t() @ next(lows)).mul_(pair.scale), None]
    if not wants_input:
        return x_NI.new_empty(0), flat
    x_gradient: Tensor | None = None
    for gradient, base, pair, low_gradient in zip(gradients, bases, pairs, low_gradients, strict=True):
        weight_OI, apart = _weight(base, pair, len(x_NI))
        x_gradient = gradient @ weight_OI if x_gradient is None else x_gradient.addmm_(gradient, weight_OI)
        if apart is not None and low_gradient is not None:
            x_gradient.addmm_(low_gradient, apart.down_RI)
    assert x_gradient is not None
    return x_gradient, flat


def _weight(base: nn.Linear, pair: Pair | None, num_tokens: int) -> tuple[Tensor, Pair | None]:
    """The weight (O, I) to multiply with, and the pair if it is not in it.

    W + alpha / r · B·A is made where that costs less than the thin products that it saves: r · O · I, forward
    and again backward, against r · N · (O + I).
    """
    weight_OI: Tensor = base.weight
    outputs, inputs = weight_OI.shape
    if pair is None or num_tokens * (outputs + inputs) <= 2 * outputs * inputs:
        return weight_OI, pair
    return torch.addmm(weight_OI, pair.up_OR, pair.down_RI, alpha=pair.scale), None

"""TRL's fused head: log-probabilities of every position, in tiles of logits, as it weighs on a device.

On the CPU that is TRL's own function. On CUDA one Triton kernel folds a tile into the running sums in
place. It cannot be run without the device, and what torch does in its stead elsewhere makes several copies
of a tile. So `InPlaceTiles` stands in for it: the buffers and products of TRL's function, without the fold.
A test compares the two, tensor by tensor.
"""

from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

# Shapes: N tokens, H hidden size, V vocabulary, T and W tokens and words of a tile.

TILE_WIDTH = 32768
"""Words of a tile, as SFT's trainer runs the head."""
_OUTPUTS = ("log_probs", "entropy", "is_top1")
_NUM_SUMS = 7
"""Running sums and maxima of each token."""


def fused_logprobs(hidden_NH: Tensor, head: Any, targets_N: Tensor, *, softcap: Any, on_cuda: bool) -> Tensor:
    """Log-probabilities (N,) of `targets_N`: their values mean nothing, their memory is TRL's."""
    if on_cuda:
        tiles: Any = InPlaceTiles
        logprobs_N: Tensor = tiles.apply(hidden_NH, head.weight, head.bias, targets_N)
        return logprobs_N
    # The part of a tile beyond the vocabulary is allocated and never touched: on the CPU it takes no memory.
    width = min(head.weight.shape[0], TILE_WIDTH)
    outputs: tuple[Tensor, ...] = ChunkedLogProbFunction.apply(
        hidden_NH, head.weight, head.bias, targets_N, 1.0, width, softcap, 1.0, _OUTPUTS
    )
    return outputs[0]


class InPlaceTiles(torch.autograd.Function):
    """`ChunkedLogProbFunction` on CUDA, but for what its kernels compute inside a tile."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor
    ) -> Tensor:
        ctx.dtype = _compute_dtype(hidden_NH)
        sums = [hidden_NH.new_zeros(len(hidden_NH), dtype=torch.float32) for _ in range(_NUM_SUMS)]
        buffer_TW = _tile_buffer(hidden_NH, ctx.dtype)
        for hidden_TH in hidden_NH.split(TOKEN_CHUNK_SIZE):
            rounded_TH = hidden_TH.to(ctx.dtype)
            for weight_WH in weight_VH.split(TILE_WIDTH):
                tile_TW = buffer_TW[: len(hidden_TH), : len(weight_WH)]
                torch.mm(rounded_TH, weight_WH.to(ctx.dtype).t(), out=tile_TW)
        log_z_N = sums[0] + sums[1].log()
        entropy_N = log_z_N - sums[2]
        logprobs_N = sums[3] - log_z_N
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, log_z_N, entropy_N)
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, *_ = ctx.saved_tensors
        needed = ctx.needs_input_grad
        hidden_sum = _zeros_like(hidden_NH) if needed[0] else None
        weight_sum = _zeros_like(weight_VH) if needed[1] else None
        bias_sum = _zeros_like(bias_V) if needed[2] else None
        buffer_TW = _tile_buffer(hidden_NH, ctx.dtype)
        for hidden_TH in hidden_NH.split(TOKEN_CHUNK_SIZE):
            rounded_TH = hidden_TH.to(ctx.dtype)
            for weight_WH in weight_VH.split(TILE_WIDTH):
                # Kept until the next one is there: TRL multiplies with it twice.
                rounded_WH = weight_WH.to(ctx.dtype)
                tile_TW = buffer_TW[: len(hidden_TH), : len(weight_WH)]
                torch.mm(rounded_TH, rounded_WH.t(), out=tile_TW)
        hidden_gradient = None if hidden_sum is None else hidden_sum.to(hidden_NH.dtype)
        weight_gradient = None if weight_sum is None else weight_sum.to(weight_VH.dtype)
        bias_gradient = None if bias_sum is None else bias_sum.to(bias_V.dtype)
        return hidden_gradient, weight_gradient, bias_gradient, None


def _compute_dtype(hidden_NH: Tensor) -> torch.dtype:
    device = hidden_NH.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype


def _tile_buffer(hidden_NH: Tensor, dtype: torch.dtype) -> Tensor:
    """The one block that all tiles are made in, as wide as a tile may be."""
    return hidden_NH.new_empty(min(len(hidden_NH), TOKEN_CHUNK_SIZE), TILE_WIDTH, dtype=dtype)


def _zeros_like(tensor: Tensor) -> Tensor:
    """Where a gradient is summed, in fp32 whatever the input's type."""
    return torch.zeros_like(tensor, dtype=torch.float32)

"""Sequences laid end to end, without padding, and causal attention within each of them.

All layers but attention treat tokens alone, so the tokens of a micro-batch form one long row. Attention puts
neighbouring sequences of like length on a small grid of their own, and takes their tokens off it again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Shapes: N tokens of all sequences, n of a group; R sequences of a group, T tokens of its longest, C = R · T;
# Q query heads, K key and value heads, D numbers of a head; B sequences and L columns of the padded input.

_SHORT = 128
"""Up to this many tokens, matrix products with all scores in memory are taken on a CPU in place of torch's
fused attention (docs/performance.md)."""


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences that attend side by side, each only to itself."""

    num_tokens: int
    num_rows: int
    width: int
    token_C: Tensor | None
    """The token at every place of the (R, T) grid, counted from the group's first; 0 over padding. None if
    there is no padding."""
    place_n: Tensor | None
    """The place of every token on the grid."""

    def to_grid(self, values_nH: Tensor) -> Tensor:
        """Values on the grid (C, H); over padding they mean nothing."""
        return values_nH if self.token_C is None else values_nH.index_select(0, self.token_C)

    def to_tokens(self, grid_CH: Tensor) -> Tensor:
        return grid_CH if self.place_n is None else grid_CH.index_select(0, self.place_n)

    def gradient_to_grid(self, gradient_nH: Tensor) -> Tensor:
        """Gradients of `to_tokens`: padding gets none."""
        if self.place_n is None:
            return gradient_nH
        grid = gradient_nH.new_zeros(self.num_rows * self.width, gradient_nH.shape[1])
        return grid.index_copy_(0, self.place_n, gradient_nH)


class Packing:
    """How B sequences, padded on the right to L columns, become one row of N tokens."""

    def __init__(self, lengths: Sequence[int], num_columns: int, device: torch.device) -> None:
        self.shape = (len(lengths), num_columns)
        self.is_full = min(lengths) == num_columns
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        real = [torch.arange(lengths[row]) for row in by_length]
        rows = zip(by_length, real, strict=True)
        self.tokens_N = torch.cat([row * num_columns + places for row, places in rows]).to(device)
        """Places of the tokens in the flattened (B, L) input, shorter sequences first."""
        self.positions_1N = torch.cat(real)[None].to(device)
        self.groups = _groups([lengths[row] for row in by_length], device)

    def pack(self, values_BL: Tensor) -> Tensor:
        """(B, L, ...) as (1, N, ...)."""
        flat = values_BL.flatten(0, 1)
        return flat[None] if self.is_full else flat.index_select(0, self.tokens_N)[None]

    def unpack(self, values_NH: Tensor) -> Tensor:
        """(N, H) as (B, L, H), with zeros over padding."""
        if self.is_full:
            return values_NH.view(*self.shape, -1)
        grid = values_NH.new_zeros(self.shape[0] * self.shape[1], values_NH.shape[1])
        return grid.index_copy(0, self.tokens_N, values_NH).view(*self.shape, -1)

    def numbers_of(self, places_M: Tensor) -> Tensor:
        """Numbers of the tokens at `places_M` of the flattened (B, L) input in the packed row."""
        if self.is_full:
            return places_M
        numbers = places_M.new_zeros(self.shape[0] * self.shape[1])
        numbers[self.tokens_N] = torch.arange(len(self.tokens_N), device=places_M.device)
        return numbers[places_M]


def attend(
    query_NH: Tensor, key_NH: Tensor, value_NH: Tensor, packing: Packing, *, head_size: int, scale: float
) -> Tensor:
    """Causal softmax attention within every sequence: of (N, Q · D) queries, (N, K · D) keys and values."""
    sizes = [group.num_tokens for group in packing.groups]
    outputs = []
    # `split` rather than slices: its gradients are joined, where those of slices are each padded and added.
    parts = zip(query_NH.split(sizes), key_NH.split(sizes), value_NH.split(sizes), strict=True)
    for group, of_group in zip(packing.groups, parts, strict=True):
        if query_NH.device.type == "cpu" and group.width <= _SHORT:
            outputs.append(_ShortAttention.apply(*of_group, group, head_size, scale))  # type: ignore[no-untyped-call]
        else:
            outputs.append(_fused_attention(*of_group, group, head_size, scale))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _fused_attention(
    query_nH: Tensor, key_nH: Tensor, value_nH: Tensor, group: Group, head_size: int, scale: float
) -> Tensor:
    """What torch itself offers, on the grid of a group."""
    query, key, value = (
        _ToGrid.apply(values, group).view(group.num_rows, group.width, -1, head_size).transpose(1, 2)  # type: ignore[no-untyped-call]
        for values in (query_nH, key_nH, value_nH)
    )
    is_grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=is_grouped
    )
    flat: Tensor = _ToTokens.apply(output.transpose(1, 2).reshape(-1, query_nH.shape[1]), group)  # type: ignore[no-untyped-call]
    return flat


class _ToGrid(torch.autograd.Function):
    """`Group.to_grid`, whose gradient is a gather as well: every token has one place."""

    @staticmethod
    def forward(ctx: Any, values_nH: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.to_grid(values_nH)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return ctx.group.to_tokens(gradients[0]), None


class _ToTokens(torch.autograd.Function):
    """`Group.to_tokens` with its gradient."""

    @staticmethod
    def forward(ctx: Any, grid_CH: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.to_tokens(grid_CH)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return ctx.group.gradient_to_grid(gradients[0]), None


class _ShortAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ + mask) V with all (T, T) scores in memory, kept for the backward pass.

    Query heads that share a key head (2305.13245) stand below each other as rows of one product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_nH: Tensor,
        key_nH: Tensor,
        value_nH: Tensor,
        group: Group,
        head_size: int,
        scale: float,
    ) -> Tensor:
        rows, width = group.num_rows, group.width
        num_keys = key_nH.shape[1] // head_size
        shared = query_nH.shape[1] // key_nH.shape[1]

        def grid(values_nH: Tensor) -> Tensor:
            return group.to_grid(values_nH).view(rows, width, -1, head_size)

        query = grid(query_nH).transpose(1, 2).reshape(rows * num_keys, shared * width, head_size)
        key_turned = grid(key_nH).permute(0, 2, 3, 1).reshape(rows * num_keys, head_size, width)
        value = grid(value_nH).transpose(1, 2).reshape(rows * num_keys, width, head_size)
        scores = torch.bmm(query, key_turned).mul_(scale)
        hidden = torch.full((width, width), float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
        scores.view(rows * num_keys, shared, width, width).add_(hidden)
        weights = torch.softmax(scores, -1)
        del scores
        output = torch.bmm(weights, value)
        ctx.save_for_backward(query, key_turned, value, weights)
        ctx.group, ctx.scale = group, scale
        return group.to_tokens(_heads_together(output, rows, width))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        query, key_turned, value, weights = ctx.saved_tensors
        group, rows, width = ctx.group, ctx.group.num_rows, ctx.group.width
        head_size = query.shape[-1]
        gradient = group.gradient_to_grid(gradients[0]).view(rows, width, -1, head_size)
        gradient = gradient.transpose(1, 2).reshape(query.shape)
        value_gradient = torch.bmm(weights.transpose(1, 2), gradient)
        products = torch.bmm(gradient, value.transpose(1, 2).contiguous())
        score_gradient = torch._softmax_backward_data(products, weights, -1, weights.dtype)
        del products
        score_gradient.mul_(ctx.scale)
        query_gradient = torch.bmm(score_gradient, key_turned.transpose(1, 2).contiguous())
        key_gradient = torch.bmm(score_gradient.transpose(1, 2), query)
        return (
            group.to_tokens(_heads_together(query_gradient, rows, width)),
            group.to_tokens(_heads_together(key_gradient, rows, width)),
            group.to_tokens(_heads_together(value_gradient, rows, width)),
            None,
            None,
            None,
        )


def _heads_together(values: Tensor, rows: int, width: int) -> Tensor:
    """(R · K, shared · T, D) as (C, Q · D)."""
    return values.view(rows, -1, width, values.shape[-1]).transpose(1, 2).reshape(rows * width, -1)


def _groups(lengths: list[int], device: torch.device) -> list[Group]:
    groups, first = [], 0
    while first < len(lengths):
        end = first + 1
        while end < len(lengths) and _alike(lengths[first : end + 1]):
            end += 1
        groups.append(_group(lengths[first:end], device))
        first = end
    return groups


def _alike(lengths: list[int]) -> bool:
    """Whether little of a common grid would be padding: of lengths in ascending order."""
    return lengths[-1] <= 1.25 * lengths[0] + 8


def _group(lengths: list[int], device: torch.device) -> Group:
    num_tokens, rows, width = sum(lengths), len(lengths), max(lengths)
    if min(lengths) == width:
        return Group(num_tokens, rows, width, None, None)
    real_RT = torch.arange(width) < torch.tensor(lengths)[:, None]
    place_n = real_RT.flatten().nonzero().squeeze(1)
    token_C = torch.zeros(rows * width, dtype=torch.long)
    token_C[place_n] = torch.arange(len(place_n))
    return Group(num_tokens, rows, width, token_C.to(device), place_n.to(device))

"""How sequences are put together: padded, in micro-batches within a token budget, and in parts for ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlhf.model.layers.varlen import Packing

# Shapes: B sequences, L tokens of a padded sequence.


@dataclass(frozen=True)
class TokenBatch:
    """Sequences that go through the decoder together: token ids, padded on the right.

    Made once for a micro-batch, whichever roles it passes through: so it is packed once.
    """

    ids_BL: Tensor
    lengths_B: Tensor | None = None
    """Real tokens of each row; None: there is no padding."""

    @staticmethod
    def of(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str) -> "TokenBatch":
        """The batch of `sequences`, with `pad_id` over padding."""
        ids_BL, mask_BL = pad(sequences, pad_id, device)
        return TokenBatch(ids_BL, mask_BL.sum(1))

    @cached_property
    def packing(self) -> Packing:
        """How the rows become one row without padding."""
        num_rows, num_columns = self.ids_BL.shape
        lengths = [num_columns] * num_rows if self.lengths_B is None else self.lengths_B.tolist()
        return Packing(lengths, num_columns, self.ids_BL.device)

    @property
    def last_B(self) -> Tensor:
        """Place of each row's last real token in the flattened (B, L) ids."""
        num_rows, num_columns = self.ids_BL.shape
        begins_B = torch.arange(num_rows, device=self.ids_BL.device) * num_columns
        return begins_B + (num_columns if self.lengths_B is None else self.lengths_B) - 1


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) with `pad_id` over padding, on the right or the left, and the mask of real tokens."""
    # No value of a tensor is read, and no shape depends on one: the memory planner's tensors have none.
    lengths = [len(ids) for ids in sequences]
    mask_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    if left:
        mask_BL = mask_BL.flip(1)
    tokens = torch.tensor([token for ids in sequences for token in ids], dtype=torch.long)
    ids_BL = torch.full(mask_BL.shape, pad_id, dtype=torch.long).masked_scatter_(mask_BL, tokens)
    return ids_BL.to(device), mask_BL.to(device)


def token_batches(
    lengths: Sequence[int], max_tokens: int, *, num_rows: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Places of `lengths` in batches of at most `max_tokens` padded tokens, or of one place that has more.

    Shorter ones come first, so that what is padded to one length has nearly that length. A place stands for
    `num_rows` sequences, one if that is not given, of `lengths` tokens at most.
    """
    batch: list[int] = []
    batch_rows = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = 1 if num_rows is None else num_rows[place]
        if batch and lengths[place] * (batch_rows + rows) > max_tokens:
            yield batch
            batch, batch_rows = [], 0
        batch.append(place)
        batch_rows += rows
    if batch:
        yield batch


def split_by_cost(costs: Sequence[int], num_parts: int) -> list[list[int]]:
    """Places of `costs` in `num_parts` parts of nearly equal total cost, each in ascending order.

    The costliest place goes first, always to the part that is cheapest so far: "longest processing time
    first" (Graham 1969). Parts may be empty.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        cheapest = totals.index(min(totals))
        parts[cheapest].append(place)
        totals[cheapest] += costs[place]
    return [sorted(part) for part in parts]

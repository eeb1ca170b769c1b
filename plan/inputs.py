"""What goes into a planned pass: token ids and masks of the greatest size, without values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plan.ledger import Ledger

Run = Callable[[Any, Ledger], None]
"""A piece of a stage: runs on a backbone, or on what SFT trains, and books in the ledger."""


@dataclass(frozen=True)
class Batch:
    """Sequences that go through the model together, all of one length."""

    rows: int
    tokens: int
    response_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.tokens

    @staticmethod
    def within(max_tokens: int, rows: int, *, tokens: int, response_tokens: int) -> "Batch":
        """As many of `rows` as `max_tokens` padded tokens allow; at least one."""
        return Batch(max(1, min(rows, max_tokens // tokens)), tokens, min(response_tokens, tokens))


def token_ids(*shape: int) -> Tensor:
    """Ids, or places: numbers of the type that the model takes."""
    return torch.zeros(shape, dtype=torch.long)


def token_mask(rows: int, tokens: int) -> Tensor:
    """Not all tokens are real: then attention needs a mask, and the mask memory."""
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, 0] = 0
    return mask

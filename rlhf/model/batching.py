"""How sequences are put together: micro-batches within a token budget, and parts of equal cost for ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def packing(self) -> Packing:
        """How the rows become one row without padding."""
        num_rows, num_columns = self.ids_BL.shape
        lengths = [num_columns] * num_rows if self.lengths_B is None else self.lengths_B.tolist()
        return Packing(lengths, num_columns, self.ids_BL.device)


def balanced(costs: Sequence[int], num_parts: int) -> list[list[int]]:
    """Places of `costs` in so many parts of like total: the costliest first, to the cheapest part yet."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        cheapest = totals.index(min(totals))
        parts[cheapest].append(place)
        totals[cheapest] += costs[place]
    return [sorted(part) for part in parts]

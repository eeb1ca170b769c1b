"""How sequences are put together: micro-batches within a token budget, and parts of equal cost for ranks."""

from collections.abc import Sequence


def balanced(costs: Sequence[int], num_parts: int) -> list[list[int]]:
    """Places of `costs` in so many parts of like total: the costliest first, to the cheapest part yet."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        cheapest = totals.index(min(totals))
        parts[cheapest].append(place)
        totals[cheapest] += costs[place]
    return [sorted(part) for part in parts]

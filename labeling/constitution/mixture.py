"""Two kinds of records in one file, in given shares."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

Record = TypeVar("Record")


def mixed(own: Sequence[Record], others: Sequence[Record], share: float, *, seed: int) -> list[Record]:
    """Both kinds in random order, `share` of them `others`: as many as the share allows.

    Without any others, all of `own`.
    """
    rng = Random(seed)
    both = list(own)
    if others:
        total = min(len(own) / (1 - share), len(others) / share)
        num_own = min(len(own), round(total * (1 - share)))
        num_others = min(len(others), round(total * share))
        both = rng.sample(list(own), num_own)
        both += rng.sample(list(others), num_others)
    rng.shuffle(both)
    return both

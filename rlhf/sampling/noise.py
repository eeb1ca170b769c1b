"""The uniform numbers by which tokens are drawn: a function of (seed, key, position) and of nothing else.

No generator with a state is used: its numbers would depend on how many were drawn before, and so on the
batch, on the order of rows, and on when a neighbour finishes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Key = tuple[int, ...]
"""What tells one response from every other: iteration, prompt and sample, or what the caller counts by."""


def uniforms(seed: int, keys: Sequence[Key], num_positions: int) -> Tensor:
    """Uniform numbers (len(keys), num_positions) in [0, 1), float64: a hash of (seed, key, position) each.

    SplitMix64's finalizer (Steele, Lea, Flood 2014) is applied once per integer of the key.
    """
    state = np.full((len(keys), 1), np.uint64(seed), dtype=np.uint64)
    for part in np.array(keys, dtype=np.uint64).reshape(len(keys), -1).T:
        state = _mix(state ^ _mix(part[:, None]))
    bits = _mix(state ^ _mix(np.arange(num_positions, dtype=np.uint64)[None, :]))
    # A double holds 53 bits: it holds the upper 53 of the 64 exactly.
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

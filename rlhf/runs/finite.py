"""The numbers of a checkpoint that are not finite: they would be in every step that comes after."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def first_not_finite(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> str | None:
    """The name of the first tensor or JSON value that holds NaN or an infinity; None: all are finite."""
    for name, tensor in tensors.items():
        # torch does not ask numbers of eight bits whether they are finite.
        numbers = tensor.float() if tensor.element_size() == 1 else tensor
        if not bool(numbers.isfinite().all()):
            return name
    return _in_json("state", state)


def _in_json(name: str, value: Any) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    parts: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        parts = [(f"{name}.{key}", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{name}.{place}", part) for place, part in enumerate(value)]
    for part_name, part in parts:
        if (found := _in_json(part_name, part)) is not None:
            return found
    return None

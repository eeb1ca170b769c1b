"""Cells of tables, whose columns have one type: lists and numbers that are written as text."""

import json
from typing import Any

from rlhf.errors import UserError

_STRUCTURED = ("messages", "completions", "ranks", "comparisons", "probability")


def says_nothing(value: Any) -> bool:
    """Whether a cell is empty."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    return value is None or value in ([], {}, ())


def parse_cells(values: dict[str, Any]) -> None:
    """Turn JSON text in the fields that hold lists and numbers into those; empty text into no value."""
    for name in _STRUCTURED:
        cell = values.get(name)
        if not isinstance(cell, str):
            continue
        if not cell.strip():
            del values[name]
            continue
        try:
            values[name] = json.loads(cell)
        except json.JSONDecodeError as error:
            fix = "Write lists and numbers as JSON in this column."
            at = f"line {error.lineno}, column {error.colno}" if "\n" in cell else f"column {error.colno}"
            raise UserError(f"`{name}` is not JSON at {at} of the cell: {error.msg}", fix=fix) from None
    ranks = values.get("ranks")
    if isinstance(ranks, list):
        values["ranks"] = [
            int(rank) if isinstance(rank, str) and rank.isascii() and rank.isdigit() else rank
            for rank in ranks
        ]

"""What is to be ranked: one prompt with several completions, and their JSONL.

    {"prompt": "…", "completions": ["…", "…"], "ended": [true, false], "model": "<sha256>"}

`ended` and `model` may be missing in a file that comes from elsewhere.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.fields import Fields
from rlhf.records import Prompt, Turns, to_json
from rlhf.rows import file_rows, parse_json


@dataclass(frozen=True, kw_only=True)
class Item:
    """K >= 2 completions of one prompt.

    Raises:
        UserError: fewer than two completions, or `ended` does not fit them.
    """

    prompt: str | Turns
    completions: tuple[str, ...]
    ended: tuple[bool, ...] | None = None
    """Whether each completion ended by itself and not at the longest response."""
    model: str | None = None
    """Hash of the model that wrote them."""

    def __post_init__(self) -> None:
        if len(self.completions) < 2:
            raise UserError(
                f"there is nothing to rank among {len(self.completions)} completions",
                fix="Give every prompt two completions or more.",
            )
        if self.ended is not None and len(self.ended) != len(self.completions):
            raise UserError(
                f"`ended` has {len(self.ended)} values for {len(self.completions)} completions",
                fix="Give one true or false for each completion, or leave `ended` out.",
            )


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write one item a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for item in items:
            row: dict[str, Any] = to_json(Prompt(prompt=item.prompt))
            row["completions"] = list(item.completions)
            if item.ended is not None:
                row["ended"] = list(item.ended)
            if item.model is not None:
                row["model"] = item.model
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_items(path: Path) -> list[Item]:
    """The items of a JSONL file, in its order.

    Raises:
        UserError: a malformed line (with its number), or none at all.
    """
    items: list[Item] = []
    for where, content in file_rows(path):
        try:
            items.append(_item(parse_json(content)))
        except UserError as error:
            raise UserError(error.what, where=f"{path}, {where}", fix=error.fix) from None
    if not items:
        raise UserError("there is nothing to rank in it", where=str(path), fix="Run `make samples` again.")
    return items


def _item(row: Any) -> Item:
    fix = 'Write every line as {"prompt": "…", "completions": ["…", "…"]}.'
    if not isinstance(row, dict) or not {"prompt", "completions"} <= row.keys():
        raise UserError("this is not a prompt with completions", fix=fix)
    fields = Fields(row)
    ended = row.get("ended")
    if ended is not None and not (isinstance(ended, list) and all(isinstance(end, bool) for end in ended)):
        raise UserError("`ended` is not a list of true and false", fix=fix)
    return Item(
        prompt=fields.prompt(),
        completions=fields.completions(),
        ended=None if ended is None else tuple(ended),
        model=fields.text("model") if row.get("model") is not None else None,
    )

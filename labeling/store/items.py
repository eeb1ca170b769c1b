"""What is to be ranked: one prompt with several completions, and their JSONL.

    {"prompt": "…", "completions": ["…", "…"], "ended": [true, false], "model": "<sha256>"}

`ended` and `model` may be missing in a file that comes from elsewhere. Where completions of several models
stand together, `models` has a name for each instead of `model`. Labelers never see either.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.columns import Columns, UnusableRowError
from rlhf.data.readers import file_rows, parse_json
from rlhf.data.records import Prompt, Turns, prompt_key, to_json
from rlhf.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Item:
    """K >= 2 completions of one prompt.

    Raises:
        UserError: fewer than two completions, or `ended` or `models` does not fit them.
    """

    prompt: str | Turns
    completions: tuple[str, ...]
    ended: tuple[bool, ...] | None = None
    """Whether each completion ended by itself and not at the longest response."""
    model: str | None = None
    """Hash of the model that wrote them."""
    models: tuple[str, ...] | None = None
    """The model that wrote each completion, where there are several."""

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
        if self.models is not None and len(self.models) != len(self.completions):
            raise UserError(
                f"`models` has {len(self.models)} names for {len(self.completions)} completions",
                fix="Name a model for each completion, or leave `models` out.",
            )

    @property
    def key(self) -> str:
        """SHA-256 of prompt and completions: equal for equal items and only for them."""
        content = prompt_key(self.prompt) + "\n" + json.dumps(self.completions)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def writers(self) -> tuple[str, ...] | None:
        """The model that wrote each completion, as far as it is known."""
        if self.models is not None or self.model is None:
            return self.models
        return (self.model,) * len(self.completions)


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
            if item.models is not None:
                row["models"] = list(item.models)
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
            raise error.at(f"{path}, {where}") from None
        except UnusableRowError as error:
            raise UserError(error.reason, where=f"{path}, {where}", fix="Leave this row out.") from None
    if not items:
        raise UserError("there is nothing to rank in it", where=str(path), fix="Run `make samples` again.")
    return items


def _item(row: Any) -> Item:
    fix = 'Write every line as {"prompt": "…", "completions": ["…", "…"]}.'
    if not isinstance(row, dict) or not {"prompt", "completions"} <= row.keys():
        raise UserError("this is not a prompt with completions", fix=fix)
    fields = Columns(row)
    ended = row.get("ended")
    if ended is not None and not (isinstance(ended, list) and all(isinstance(end, bool) for end in ended)):
        raise UserError("`ended` is not a list of true and false", fix=fix)
    models = row.get("models")
    if models is not None and not (
        isinstance(models, list) and all(isinstance(model, str) for model in models)
    ):
        raise UserError("`models` is not a list of names", fix=fix)
    return Item(
        prompt=fields.prompt(),
        completions=fields.completions(),
        ended=None if ended is None else tuple(ended),
        model=fields.text("model") if row.get("model") is not None else None,
        models=None if models is None else tuple(models),
    )

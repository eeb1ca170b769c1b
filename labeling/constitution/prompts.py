"""Prompts with the group that each belongs to: safe or unsafe, red-team or ordinary."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeling.constitution.config import PromptSettings
from rlhf.data.counts import RecordCounts
from rlhf.data.readers import file_rows, hub_rows, local_file, parse_json
from rlhf.data.records import Turns
from rlhf.data.sources import read_prompts
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings


@dataclass(frozen=True)
class GroupedPrompt:
    """A prompt and what it is counted under."""

    prompt: str | Turns
    group: str


def read_grouped(
    sources: Sequence[PromptSettings], *, seed: int, run_folder: Path
) -> tuple[list[GroupedPrompt], RecordCounts]:
    """The prompts of all sources, mixed by weight, each with its group.

    Raises:
        UserError: as `read_prompts`, or a row without the column that names its group.
    """
    plain = [
        SourceSettings(**source.model_dump(exclude={"group", "group_column"}, exclude_unset=True))
        for source in sources
    ]
    records, counts = read_prompts(plain, seed=seed, run_folder=run_folder)
    groups: dict[str, str] = {}
    for source in sources:
        groups |= _groups(source, run_folder)
    return [GroupedPrompt(record.prompt, groups[record.where]) for record in records], counts


def _groups(source: PromptSettings, run_folder: Path) -> dict[str, str]:
    """Where each row was read → its group."""
    path = local_file(source, run_folder)
    name = source.path if path is None else str(path)
    rows = hub_rows(source) if path is None else file_rows(path)
    return {f"{name}, {where}": _group(source, raw, f"{name}, {where}") for where, raw in rows}


def _group(source: PromptSettings, raw: Any, where: str) -> str:
    if source.group_column is None:
        return source.group or source.path
    row = parse_json(raw) if isinstance(raw, bytes) else raw
    value = row.get(source.group_column) if isinstance(row, dict) else None
    if not isinstance(value, str | int | bool) or value == "":
        fix = "Name a column that every row has, or unset `group_column`."
        raise UserError(f"the row has no text in `{source.group_column}`", where=where, fix=fix)
    return str(value)

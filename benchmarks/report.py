"""What all reports have in common: tables, the commit, and a JSON file with its Markdown next to it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def commit_of(code: Mapping[str, Any]) -> str:
    """The short commit, and whether files differed from it."""
    commit: str = code["commit"] or "unknown"
    changes = " with changes" if code["dirty"] else ""
    return commit[:10] + changes


def write_report(data: Mapping[str, Any], text: str, folder: Path, name: str) -> None:
    """Write `<name>.json` and `<name>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = json.dumps(data, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(f"{values}\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")

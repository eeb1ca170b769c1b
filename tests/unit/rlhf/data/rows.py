"""Rows of every schema for tests, and readers that a test calls with one file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.counts import RecordCounts
from rlhf.data.records import Message
from rlhf.data.sources import read_demonstrations, read_prompts, read_rankings
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings

REPOSITORY = Path(__file__).parents[4]
GOOD = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}

Read = Callable[..., tuple[list[Any], RecordCounts]]
DEMONSTRATION, RANKING, PROMPT = read_demonstrations, read_rankings, read_prompts

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TALK = f"{HUMAN} Hello.{ASSISTANT} Hi!{HUMAN} Sing."
TURNS = (Message("user", "Hello."), Message("assistant", "Hi!"), Message("user", "Sing."))


def message(role: str, content: str | None) -> dict[str, str | None]:
    return {"role": role, "content": content}


TALK_MESSAGES = [message(turn.role, turn.content) for turn in TURNS]


def jsonl(folder: Path, *rows: Any, name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_with_counts(read: Read, path: str, **settings: Any) -> tuple[list[Any], RecordCounts]:
    return read([SourceSettings(path=path, **settings)], seed=0, run_folder=Path("runs/r"))


def read_one(read: Read, folder: Path, row: dict[str, Any], **settings: Any) -> Any:
    records, _ = read_with_counts(read, jsonl(folder, row), **settings)
    assert len(records) == 1
    return records[0]


def error_of(read: Read, path: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_with_counts(read, path, **settings)
    assert caught.value.fix
    return str(caught.value)

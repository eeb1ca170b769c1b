"""Messages in the forms of files and of other programs: JSON text, one message alone, names of columns."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from rlhf.data.messages import is_conversation_about, is_message
from rlhf.errors import UserError

_CONVERSATIONS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
_PRINTED = re.compile(r"\s*\[\s*(\{|dict\()\s*'?(role|content|from|value)'?\s*[:=]")
"""How Python, and so a data frame that is written to a file, prints a list of messages."""


def parse_conversations(values: dict[str, Any]) -> None:
    """Turn lists of messages that are written as JSON text into lists, and preferences of messages into ours.

    Raises:
        UserError: they are written as Python prints them, or prompt and answers are lists of texts.
    """
    for name in _CONVERSATIONS:
        if isinstance(values.get(name), str):
            values[name] = _messages_of(values[name], f"`{name}`")
    completions = values.get("completions")
    if isinstance(completions, list | tuple):
        values["completions"] = [
            _messages_of(each, f"completion {number}") if isinstance(each, str) else each
            for number, each in enumerate(completions, start=1)
        ]
    for prompt, answer in (("prompt", "completion"), ("prompt", "chosen"), ("prompt", "rejected")):
        if all(_is_list_of_texts(values.get(name)) for name in (prompt, answer)):
            fix = "Write the turns as messages, or a row for each text."
            raise UserError(f"`{prompt}` and `{answer}` are lists of texts, written as text", fix=fix)
    _open_llamafactory_preference(values)


def refuse_unread_conversation(values: Mapping[str, Any], read: Collection[str]) -> None:
    """Check that a prompt that is text does not stand beside the conversation that it is the end of.

    Raises:
        UserError: it does, in a column of another name than ours that nothing reads.
    """
    prompt = values.get("prompt")
    if not isinstance(prompt, str):
        return
    for name, value in values.items():
        if name in (*_CONVERSATIONS, "completions", *read) or not is_conversation_about(value, prompt):
            continue
        raise UserError(
            f"the column `{name}` holds the conversation that the prompt belongs to, and nothing reads it",
            fix=f"Name it under `columns`, as in the other stages (`chosen: {name}`, say); `ignore: "
            f"[{name}]` in the source goes without it.",
        )


def renamed_preference(row: dict[str, Any]) -> dict[str, Any]:
    """A row of OpenAI's preference fine-tuning under our names; any other as it is."""
    asked = row.get("input")
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        return row
    if not {"preferred_output", "non_preferred_output"} <= set(row) or "prompt" in row:
        return row
    made = {"prompt": asked["messages"]}
    made |= {"tools": asked["tools"]} if asked.get("tools") else {}
    names = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
    return made | {names.get(name, name): value for name, value in row.items() if name != "input"}


def _open_llamafactory_preference(values: dict[str, Any]) -> None:
    """Answers that are one message each, after the `conversations` (or `messages`) that are their prompt."""
    answers = [name for name in ("completion", "chosen", "rejected") if is_message(values.get(name))]
    for name in answers:
        values[name] = [values[name]]
    if answers and "prompt" not in values:
        found = values.pop("conversations", None)
        found = values.pop("messages", found)
        if found is not None:
            values["prompt"] = found


def _messages_of(text: str, name: str) -> Any:
    """The messages that a text is JSON of; any other text as it is."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        if _PRINTED.match(text):
            fix = (
                "Write JSON: `json.dumps(messages)` before `to_csv`, or a JSON lines or Parquet file instead."
            )
            raise UserError(f"{name} is a list of messages as Python prints it, not JSON", fix=fix) from None
        return text
    is_conversation = isinstance(value, list) and bool(value) and all(is_message(each) for each in value)
    return value if is_conversation else text


def _is_list_of_texts(value: Any) -> bool:
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return False
    try:
        parsed = json.loads(value)
    except ValueError:
        return False
    return isinstance(parsed, list) and bool(parsed) and all(isinstance(each, str) for each in parsed)

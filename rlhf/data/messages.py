"""A conversation as data sets write it → `Turns`: all keys of all messages are kept, or the row is not used.

Read are OpenAI's messages (`role`, `content`, `tool_calls`, …) and ShareGPT's (`from`, `value`). Content may
be text, parts of text, or null where a message calls tools. Keys that are null or empty say nothing. Whether
a chat template renders what is kept is for `rlhf.model.rendering` to find out.
"""

import json
from collections.abc import Mapping
from typing import Any

from rlhf.data.records import Message, Turns
from rlhf.errors import UserError

MESSAGES = (
    'Messages are a list of {"role": "user", "content": "…"}; an answer is by "assistant" and comes last.'
)
TOOLS = "tools"

_ROLES = frozenset(
    ("system", "developer", "user", "assistant", "tool", "function", "ipython", "environment", "documents")
)
_OTHER_NAMES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    "human": "user",
    "model": "assistant",
    "bot": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "thinking", "reasoning")
_TEXT_PARTS = ("text", "input_text", "output_text")
_PARTS = (
    *_TEXT_PARTS,
    "image",
    "image_url",
    "input_image",
    "audio",
    "input_audio",
    "video",
    "video_url",
    "file",
)
_TOOLS_FIX = "Give tools as a list of objects, or as JSON text of one."


class UnusableRowError(Exception):
    """A well-formed row that gives no record; `reason` names the count it goes to."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def kind(value: Any) -> str:
    """What a value is, in a user's words."""
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else "an object")


def checked_text(value: Any, name: str) -> str:
    """`value`, if it is text.

    Raises:
        UserError: it is not, or holds half a character.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} is {kind(value)}, not text", fix="Write it as text, in quotes.")
    try:
        value.encode()
    except UnicodeEncodeError:
        fix = "Repair the text: half of a character is missing."
        raise UserError(f"{name} holds a lone surrogate, which is not text", fix=fix) from None
    return value


def read_turns(value: Any, name: str) -> Turns:
    """The conversation that `value` is; `name` is what to call it.

    Raises:
        UserError: it is malformed.
        UnusableRowError: a message has no content, or one that is not text; tool results are not in the order
            of their calls, by which alone most chat templates tell them apart.
    """
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} is {kind(value)}, not text or messages", fix=MESSAGES)
    if not value:
        raise UserError(f"{name} is an empty list of messages", fix=MESSAGES)
    turns = tuple(_message(message, f"message {n} of {name}") for n, message in enumerate(value, start=1))
    silent = [turn.role == "user" and not turn.content.strip() and not turn.more for turn in turns]
    if not _in_order_of_calls(turns):
        raise UnusableRowError("tool results in another order than their calls")
    if any(silent) and any(turn.content.strip() for turn in turns):
        raise UnusableRowError("message without content")
    return turns


def _in_order_of_calls(turns: Turns) -> bool:
    """Whether results that name their calls come in the order of these."""
    places: dict[str, int] = {}
    latest = -1
    for turn in turns:
        others = turn.others
        calls = others.get("tool_calls")
        if isinstance(calls, list) and calls:
            named = [call.get("id") if isinstance(call, Mapping) else None for call in calls]
            places = {str(call): place for place, call in enumerate(named) if call is not None}
            latest = -1
        place = places.get(str(others.get("tool_call_id"))) if turn.role == "tool" else None
        if place is not None:
            if place < latest:
                return False
            latest = place
    return True


def without_open_answer(value: Any) -> Any:
    """A list of messages without a last one that only says that an answer by the assistant is to come."""
    if not is_messages(value) or len(value) < 2:
        return value
    last = value[-1]
    name = str(last.get("role", last.get("from"))).lower()
    says = [inner for key, inner in last.items() if key not in ("role", "from") and not _is_empty(inner)]
    return value if says or _OTHER_NAMES.get(name) != "assistant" else value[:-1]


def is_conversation_about(value: Any, text: str) -> bool:
    """Whether a value is messages of which the user's last one is this text, and others come before it."""
    if not is_messages(value) or not all(is_message(message) for message in value):
        return False
    said = [message.get("content", message.get("value")) for message in value]
    texts = [each.strip() if isinstance(each, str) else "" for each in said]
    return text.strip() in texts[1:]


def is_message(value: Any) -> bool:
    """Whether a value looks like one message."""
    if not isinstance(value, Mapping):
        return False
    keys = set(value)
    return {"role", "content"} <= keys or {"from", "value"} <= keys


def is_messages(value: Any) -> bool:
    """Whether a value looks like a list of messages."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(m, Mapping) for m in value)


def has_no_weight(message: Any) -> bool:
    """Whether OpenAI's fine-tuning format says that this answer is not to be learned."""
    weight = message.get("weight") if isinstance(message, Mapping) else None
    return weight is not None and weight == 0


def with_tools(turns: Turns, tools: Any) -> Turns:
    """The conversation with the tools that a row offers in it: they are kept in the first message.

    Raises:
        UserError: they are no list of objects.
    """
    tools = _parsed(tools, f"`{TOOLS}`")
    if _is_empty(tools) or not turns:
        return turns
    if not is_messages(tools):
        raise UserError(f"`{TOOLS}` is {kind(tools)}, not a list of objects", fix=_TOOLS_FIX)
    first = turns[0]
    return (_with_others(first, first.others | {TOOLS: list(tools)}, f"`{TOOLS}`"), *turns[1:])


def without_nulls(value: Any) -> Any:
    """`value` without null values in objects: columns of one type have every row's keys in each row."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(inner) for inner in value]
    return value


def without_keys(value: Any, keys: frozenset[str]) -> Any:
    """A list of messages without some of their keys; anything else as it is."""
    if not keys or not is_messages(value):
        return value
    return [{key: inner for key, inner in message.items() if key not in keys} for message in value]


def _message(message: Any, name: str) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"{name} is {kind(message)}", fix=MESSAGES)
    sharegpt = "role" not in message and "from" in message
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    others = {
        key: value
        for key, value in message.items()
        # `weight` says what is learned of the last message alone: see `has_no_weight`.
        if key not in (role_key, content_key, "weight") and not _is_empty(value)
    }
    for key in ("tool_calls", TOOLS):
        if key in others:
            others[key] = _parsed(others[key], f"`{key}` of {name}")
    speaks_otherwise = any(key in others for key in _INSTEAD_OF_CONTENT)
    for key in (role_key, content_key):
        if key not in message and not (key == content_key and speaks_otherwise):
            raise UserError(f"{name} has no `{key}`", fix=MESSAGES)
    if message[role_key] is None:
        raise UserError(f"`{role_key}` of {name} is null", fix=MESSAGES)
    role = checked_text(message[role_key], f"`{role_key}` of {name}")
    role = _OTHER_NAMES.get(role.lower(), role)
    if role not in _ROLES:
        fix = f"Call it one of {', '.join(sorted(_ROLES))}."
        raise UserError(f"`{role_key}` of {name} is `{role}`, which is nobody's name here", fix=fix)
    content = message.get(content_key)
    if content is None and not speaks_otherwise:
        raise UnusableRowError("message without content")
    text = "" if content is None else _content(content, f"`{content_key}` of {name}")
    return _with_others(Message(role, text), others, name)


def _content(content: Any, name: str) -> str:
    """The text of a message, which may come in parts, also in JSON text of them."""
    content = _parts_of(content) if isinstance(content, str) else content
    if not isinstance(content, list | tuple):
        return checked_text(content, name)
    return "".join(_part(part, f"part {n} of {name}") for n, part in enumerate(content, start=1))


def _parts_of(text: str) -> Any:
    """The parts that a text is JSON of; any other text as it is."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_parts = is_messages(value) and all(part.get("type") in _PARTS for part in value)
    return (
        value
        if is_parts and all("text" in part or part["type"] not in _TEXT_PARTS for part in value)
        else text
    )


def _part(part: Any, name: str) -> str:
    if not isinstance(part, Mapping):
        return checked_text(part, name)
    said = {key: value for key, value in part.items() if not _is_empty(value)}
    what = said.get("type", "text")
    if what not in _TEXT_PARTS or set(said) - {"type", "text"}:
        raise UnusableRowError(f"message with a part of type {what}")
    return checked_text(part.get("text", ""), name)


def _parsed(value: Any, name: str) -> Any:
    """A list that may be written as JSON text."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        fix = "Write a list of objects, or JSON text of one."
        raise UserError(f"{name} is text and not JSON: {error.msg}", fix=fix) from None


def _with_others(message: Message, others: Mapping[str, Any], name: str) -> Message:
    try:
        made = message.with_others(others)
        made.more.encode()
    except (TypeError, ValueError):
        keys = ", ".join(f"`{key}`" for key in others)
        raise UserError(f"{name} holds what JSON cannot carry, in {keys}", fix=MESSAGES) from None
    return made


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)

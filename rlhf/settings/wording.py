"""What is wrong with a setting, in our own words: what was given, what is accepted, and what to do.

`rlhf.settings.recipe` finds out where a mistake is; here is what it is called.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Found = Mapping[str, Any]
"""One entry of `ValidationError.errors()`."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

_MAX_SHOWN = 60
_PATTERNS = {NAME_PATTERN: "letters, digits, `.`, `_` and `-`, with a letter or a digit first"}
_TEXT = ("string_type", "path_type")
_WHOLE = ("int_type", "int_from_float", "int_parsing", "int_parsing_size")
_NUMBER = ("float_type", "float_parsing")
_KINDS = {
    **dict.fromkeys(_WHOLE, "a whole number"),
    **dict.fromkeys(_NUMBER, "a number"),
    **dict.fromkeys(_TEXT, "text"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a group of settings"),
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def describe(found: Sequence[Found], key: str, field: FieldInfo | None) -> tuple[str, str]:
    """What is wrong with the setting `key`, and the way out.

    `found` are the errors of this one setting: several where it may be of several kinds.
    """
    first, purpose = found[0], _sentence(field)
    if first["type"] == "missing":
        return f"`{key}` is missing", f"Give it a value here, or as an override: `{key}=…`.{purpose}"
    if first["type"] == "value_error":
        return f"`{key}`: {first['msg'].removeprefix('Value error, ')}", "Change one of these settings."
    given, wanted = first["input"], " or ".join(dict.fromkeys(_accepted(error) for error in found))
    return f"`{key}` is {shown(given)}, and must be {wanted}", _advice(first, key, field) + purpose


def shown(value: Any) -> str:
    """A value as YAML would write it, in short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def _accepted(error: Found) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _KINDS:
        return _KINDS[kind]
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        limit = context[bound]
        return f"{words} {int(limit) if limit == int(limit) else limit}"
    if kind == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"text like {context['pattern']}")
    if kind in ("string_too_short", "too_short"):
        unit = "character" if kind == "string_too_short" else "item"
        return f"of {context['min_length']} {unit}{'s' * (context['min_length'] > 1)} or more"
    return str(error["msg"]).removeprefix("Input should be ")


def _advice(error: Found, key: str, field: FieldInfo | None) -> str:
    given, kind = error["input"], error["type"]
    if kind in _TEXT and isinstance(given, int | float):
        return f"Put it in quotes, in a shell with others around them: '{key}=\"…\"'."
    if kind in (*_WHOLE, *_NUMBER) and isinstance(given, str) and _is_number(given):
        return "Write it without quotes."
    if kind == "literal_error":
        close = difflib.get_close_matches(str(given), _choices(field), n=1)
        if close:
            return f"Did you mean `{close[0]}`?"
    default = PydanticUndefined if field is None else field.get_default(call_default_factory=True)
    if isinstance(default, str | bool | int | float | Path):
        return f"Change it, or leave it out: the default is {shown(default)}."
    return "Change it."


def _choices(field: FieldInfo | None) -> list[str]:
    def of(annotation: Any) -> list[str]:
        if get_origin(annotation) is Literal:
            return [str(choice) for choice in get_args(annotation)]
        return [choice for inner in get_args(annotation) for choice in of(inner)]

    return [] if field is None else of(field.annotation)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _sentence(field: FieldInfo | None) -> str:
    """What the setting is for, to follow other sentences."""
    return f" What it is: {field.description}" if field is not None and field.description else ""

"""A group of settings from plain values, or an error that names the key, the line and the way out."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rlhf.errors import UserError
from rlhf.settings.groups import Settings
from rlhf.settings.wording import describe
from rlhf.settings.yaml_files import Key, dotted, location


def check(schema: type[Settings], values: Any, key: Key, path: Path, lines: dict[Key, int]) -> Settings:
    """Validate in JSON mode, strictly: a list may become a tuple, but "3" is never a number."""
    try:
        text = json.dumps({} if values is None else values)
    except TypeError as error:  # !!binary or !!set
        what = f"`{dotted(key)}` holds what is neither text, number, list nor group ({error})"
        raise UserError(what, where=location(key, path, lines), fix="Write it as text or a list.") from None
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        found = error.errors()
    # A misspelled key also leaves its field missing: name the key first, for it is the mistake.
    first = min(found, key=lambda error: error["type"] != "extra_forbidden")
    plain = json.loads(text)
    inner, groups, field = _locate(schema, plain, first["loc"])
    at = (*key, *inner)
    if first["type"] == "extra_forbidden":
        raise unknown_key(at, [name for group in groups for name in group.model_fields], path, lines)
    same = [error for error in found if _locate(schema, plain, error["loc"])[0] == inner]
    what, fix = describe(same, dotted(at), field)
    raise UserError(what, where=location(at, path, lines), fix=fix)


def unknown_key(at: Key, known: Sequence[str], path: Path, lines: dict[Key, int]) -> UserError:
    close = difflib.get_close_matches(str(at[-1]), known, n=1)
    return UserError(
        f"unknown key `{dotted(at)}`",
        where=location(at, path, lines),
        fix=f"Did you mean `{close[0]}`?" if close else f"Known here: {', '.join(known)}.",
    )


def _locate(
    schema: type[Settings], values: Any, loc: Sequence[str | int]
) -> tuple[Key, list[type[Settings]], FieldInfo | None]:
    """Where a validation error's location leads: its key, the groups of settings around it, its field.

    A location also holds pydantic's names for the members of a union, which are no part of the key.
    """
    key: Key = ()
    around, groups, last = [schema], [schema], None
    for part in loc:
        field = next((group.model_fields[str(part)] for group in groups if part in group.model_fields), None)
        if isinstance(values, dict):
            inside, present = values.get(part), part in values
        else:
            present = isinstance(values, list) and isinstance(part, int)
            inside = values[part] if present else None
        if field is None and not present:
            continue
        key, values, around = (*key, part), inside, groups
        if field is not None:
            groups, last = _groups_in(field.annotation), field
    return key, around, last


def _groups_in(annotation: Any) -> list[type[Settings]]:
    """The groups of settings that a field's values may be made of."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [group for inner in get_args(annotation) for group in _groups_in(inner)]

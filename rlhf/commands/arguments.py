"""The command line that all stages share: `python -m <stage> --config FILE [key.sub=value ...] [--clean]`.

`--help` lists every setting of the stage with its type, default and docstring. Nothing here imports torch.
"""

import argparse
import importlib
import json
import shutil
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from rlhf.settings.groups import ModelSettings, RunSettings, Settings, TrackingSettings
from rlhf.settings.recipe import Recipe, load_recipe

Sections = dict[str, type[Settings]]
"""Key in a recipe → the settings under it."""

SHARED: Sections = {
    "run": RunSettings,
    "tracking": TrackingSettings,
    "model": ModelSettings,
}


def stage_arguments(
    stage: str,
    description: str,
    argv: Sequence[str],
    *,
    extra: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """Parse a stage's command line into `config`, `overrides`, `clean` and whatever `extra` adds.

    Overrides and options may come in any order. `--help` prints the stage's settings and exits.
    """

    def sections() -> Sections:
        section: type[Settings] = importlib.import_module(f"{stage}.config").SECTION
        return {stage: section, **SHARED}

    parser = command_parser(stage, description, sections)
    add_clean(parser)
    if extra is not None:
        extra(parser)
    return parser.parse_intermixed_args(argv)


def command_parser(name: str, description: str, sections: Callable[[], Sections]) -> argparse.ArgumentParser:
    """The parser of `python -m name`, which takes a recipe; its help lists the settings in `sections`."""
    parser = _Parser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        sections=sections,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="recipe, a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's"
    )
    return parser


def add_clean(parser: argparse.ArgumentParser) -> None:
    """Let a command that writes results throw its earlier ones away."""
    parser.add_argument("--clean", action="store_true", help="throw this stage's earlier results away first")


def load(arguments: argparse.Namespace) -> Recipe:
    """The recipe that a parsed command line asks for.

    Raises:
        UserError: see `load_recipe`.
    """
    return load_recipe(arguments.config, arguments.overrides)


def settings_help(sections: Sections, *, width: int | None = None) -> str:
    """Every setting of the given sections as `key: type = default` with its docstring beneath."""
    width = width or min(shutil.get_terminal_size().columns, 110)
    lines: list[str] = []
    explained: dict[type[Settings], str] = {}
    for name, schema in sections.items():
        lines.append(f"\n{name}: {_first_line(schema.__doc__)}")
        for heading, text in _rows(schema, name, explained):
            lines.append(f"  {heading}")
            lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Adds the settings to `--help`, which only then have to be imported and laid out."""

    def __init__(self, *args: Any, sections: Callable[[], Sections] = dict, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def format_help(self) -> str:
        return f"{super().format_help()}\nsettings:\n{settings_help(self._sections())}\n"


def _rows(
    schema: type[Settings], prefix: str, explained: dict[type[Settings], str]
) -> Iterator[tuple[str, str]]:
    """(heading, docstring) of every field, depth first; a group met before only refers to where it was."""
    for name, field in schema.model_fields.items():
        key = f"{prefix}.{name}"
        group, is_list = _group(field.annotation)
        text = field.description or ""
        if group is None:
            yield f"{key}: {_type_name(field.annotation)}{_default(field)}", text
        elif group in explained:
            yield f"{key}: {'list, ' if is_list else ''}as {explained[group]}{_default(field)}", text
        else:
            inner = f"{key}.0" if is_list else key
            explained[group] = inner
            yield f"{key}: {'list' if is_list else 'group'}{_default(field)}", text
            yield from _rows(group, inner, explained)


def _group(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The settings group inside an annotation, and whether it is a list of such groups."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, False
    is_list = get_origin(annotation) is list
    for argument in get_args(annotation):
        group, inner_list = _group(argument)
        if group is not None:
            return group, is_list or inner_list
    return None, False


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments if argument is not type(None))
    if origin in (list, tuple, dict):
        inner = ", ".join(_type_name(argument) for argument in arguments if argument is not Ellipsis)
        return f"{origin.__name__}[{inner}]"
    return {str: "text", Path: "path"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return " (required)"
    if default is None:
        return ""
    if isinstance(default, Settings):
        changed = default.model_dump(mode="json", exclude_defaults=True)
        return f" = {json.dumps(changed)}" if changed else ""
    return f" = {default if isinstance(default, str | Path) else json.dumps(default)}"


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]

"""YAML files with the line of every key, and `key.sub=value` overrides of what they say."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import UserError


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as YAML, keeping their order."""
    text = yaml.dump(dict(values), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


class Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-5` is a number, `off` is a word and `2026-01-31` is text."""


class Dumper(yaml.SafeDumper):
    """Puts in quotes whatever text either `Loader` or plain YAML would read as something else."""


_BOOL, _FLOAT, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "timestamp"))
_FLOAT_FORM = re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$")
Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in (_BOOL, _FLOAT, _DATE)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
Loader.add_implicit_resolver(_FLOAT, _FLOAT_FORM, list("-+.0123456789"))
Dumper.add_implicit_resolver(_FLOAT, _FLOAT_FORM, list("-+.0123456789"))

Key = tuple[str | int, ...]
OVERRIDDEN = 0
"""The line of what an override has set."""


def read_yaml(path: Path, what: str = "the recipe") -> tuple[dict[str, Any], dict[Key, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot read {what} ({error.strerror})",
            where=str(path),
            fix="Give CONFIG= or --config a YAML file." if what == "the recipe" else "Name a YAML file.",
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{what} is not UTF-8 text", where=str(path), fix="Save it as UTF-8.") from None
    try:
        node = yaml.compose(text, Loader=Loader)
        values = yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            f"not valid YAML: {error.problem}", where=f"{path}, line {line}", fix="Correct that line."
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=str(path), fix="Correct the file.") from None
    if node is None or not isinstance(values, dict):
        raise UserError(
            f"a {what.removeprefix('the ')} is a YAML mapping of sections",
            where=str(path),
            fix="The repository has examples: configs/tiny/recipe.yaml, and configs/constitutions/.",
        )
    lines: dict[Key, int] = {}
    try:
        _collect_lines(node, (), path, lines)
    except RecursionError:
        raise UserError("an anchor contains itself", where=str(path), fix="Write the value out.") from None
    return values, lines


def _collect_lines(node: yaml.Node, key: Key, path: Path, lines: dict[Key, int]) -> None:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            at, line = (*key, name.value), name.start_mark.line + 1
            if at in lines:
                raise UserError(
                    f"`{dotted(at)}` is there twice, first in line {lines[at]}",
                    where=f"{path}, line {line}",
                    fix="Keep one of them.",
                )
            lines[at] = line
            _collect_lines(child, at, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _collect_lines(child, (*key, index), path, lines)


def apply_override(values: dict[str, Any], override: str, lines: dict[Key, int]) -> None:
    name, equals, text = override.partition("=")
    fix = "Write overrides as key.sub=value, for example ppo.kl.coefficient=0.1."
    if not equals or not name:
        raise UserError(f"`{override}` is not an override", fix=fix)
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        value = text
    *groups, last = name.split(".")
    target: Any = values
    at: Key = ()
    for part in groups:
        key = _key_of(target, part, override)
        at = (*at, key)
        if isinstance(target, dict) and target.get(part) is None:
            target[part], lines[at] = {}, OVERRIDDEN
        target = target[key]
        if not isinstance(target, dict | list):
            raise UserError(f"`{dotted(at)}` is a value, not a group", where=override, fix=fix)
    key = _key_of(target, last, override)
    target[key], at = value, (*at, key)
    for stale in [known for known in lines if known[: len(at)] == at]:
        del lines[stale]
    lines[at] = OVERRIDDEN


def _key_of(target: dict[str, Any] | list[Any], part: str, override: str) -> str | int:
    if isinstance(target, dict):
        return part
    if not part.isdecimal() or int(part) >= len(target):
        raise UserError(
            f"`{part}` is not an item of a list of {len(target)}",
            where=override,
            fix="Items count from 0: reward.rankings.0.path=my.jsonl.",
        )
    return int(part)


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def location(at: Key, path: Path, lines: dict[Key, int]) -> str:
    for length in range(len(at), 0, -1):
        line = lines.get(at[:length])
        if line == OVERRIDDEN:
            return f"override {dotted(at[:length])}"
        if line:
            return f"{path}, line {line}"
    return str(path)

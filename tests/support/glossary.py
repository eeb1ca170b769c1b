"""Compares the metric keys in the code, and in a stage's `metrics.jsonl`, with docs/metrics.md.

Keys that stand in the code as a whole are compared one by one. Keys that are put together (f"ppo/{name}")
cannot be listed by reading the code; of those, reading shows only that each documented key can be put
together from texts and f-strings that the code has. Stage tests close the gap with `assert_documented`.
"""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from rlhf.runs.metrics import METRIC_KEY, read_metrics

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "metrics.md"
PACKAGES = ("rlhf", "sft", "reward", "ppo", "labeling")

_NOT_METRICS = frozenset({"sft/model", "reward/model", "ppo/model"})  # names of outputs, as stages' inputs
_WORD = re.compile(r"[a-z0-9_]+")
_TEMPLATE = re.compile(rf"[a-z0-9_]+|{METRIC_KEY.pattern}")
_NUMBER = re.compile(r"\{[a-z]+\}")

Template = tuple[str | None, ...]
"""An f-string: its texts, and None for each hole."""


@dataclass
class Texts:
    """The texts of some source code that keys can be made of."""

    keys: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    templates: set[Template] = field(default_factory=set)

    def can_make(self, key: str) -> bool:
        """Whether `key` stands in the code, or is an f-string filled with words that can be made too."""

        @cache
        def makes(text: str) -> bool:
            if text in self.words or text in self.keys or text.isdigit():
                return True
            return any(fills(template, text) for template in self.templates)

        def fills(template: Template, text: str) -> bool:
            if not template:
                return not text
            first, rest = template[0], template[1:]
            if first is not None:
                return text.startswith(first) and fills(rest, text[len(first) :])
            ends = range(1, len(text) + 1) if rest else [len(text)]
            return any(
                _WORD.fullmatch(text[:end]) is not None and fills(rest, text[end:]) and makes(text[:end])
                for end in ends
            )

        return makes(key)

    def orphans(self, documented: Iterable[str]) -> list[str]:
        """F-strings of metric keys of which no documented key is made."""
        heads = [t for t in self.templates if METRIC_KEY.fullmatch("".join(part or "x" for part in t))]
        patterns = {
            t: "".join("[a-z0-9_]+" if part is None else re.escape(part) for part in t) for t in heads
        }
        known = [example(key) for key in documented]
        return sorted(p for p in patterns.values() if not any(re.fullmatch(p, key) for key in known))


def texts_of(sources: Iterable[str]) -> Texts:
    """What stands in quotes in Python source; docstrings and the like cannot be taken for keys."""
    found = Texts()
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            if METRIC_KEY.fullmatch(node.value):
                found.keys.add(node.value)
            elif _WORD.fullmatch(node.value):
                found.words.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            template = tuple(
                str(part.value) if isinstance(part, ast.Constant) else None for part in node.values
            )
            texts = "".join(part or "" for part in template)
            whole = "".join("x" if part is None else part for part in template)
            if texts and None in template and _TEMPLATE.fullmatch(whole):
                found.templates.add(template)
    found.keys -= _NOT_METRICS
    return found


def package_texts() -> Texts:
    return texts_of(path.read_text("utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def documented(text: str | None = None) -> dict[str, tuple[str, str]]:
    """Key → (unit, definition) of every row of the glossary.

    Raises:
        ValueError: a row lacks a cell, stands under another stage's heading, or stands there twice.
    """
    rows: dict[str, tuple[str, str]] = {}
    heading = ""
    for line in (GLOSSARY.read_text("utf-8") if text is None else text).split("\n"):
        if line.startswith("## "):
            heading = line[3:].strip()
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or cells[0] == "key" or set(cells[0]) <= set("-: "):
            continue
        if len(cells) != 3 or not cells[2] or cells[0] in rows:
            raise ValueError(f"not a row of three cells, or not the only one of its key: {line}")
        if not METRIC_KEY.fullmatch(example(cells[0])) or cells[0].partition("/")[0] != heading:
            raise ValueError(f"not a key of `{heading}`: {line}")
        rows[cells[0]] = (cells[1], cells[2])
    return rows


def example(key: str) -> str:
    """A key of the glossary with numbers for its braces."""
    return _NUMBER.sub("4", key)


def undocumented(keys: Iterable[str], glossary: Iterable[str] | None = None) -> list[str]:
    """Which of `keys` have no row; `best_of_4` is found under `best_of_{n}`."""
    parts = [_NUMBER.split(key) for key in (documented() if glossary is None else glossary)]
    pattern = re.compile("|".join(r"\d+".join(map(re.escape, part)) for part in parts) or "(?!)")
    return sorted(key for key in set(keys) if not pattern.fullmatch(key))


def assert_documented(metrics: Path) -> None:
    """Every key of a `metrics.jsonl` has a row in the glossary."""
    keys = {key for row in read_metrics(metrics) for key in row} - {"step"}
    assert keys, f"{metrics} is empty"
    assert not undocumented(keys), f"not in docs/metrics.md: {undocumented(keys)}"

"""Making a project out of files, and entering labels from files, and what was read from them."""

import argparse
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from labeling.config import LabelingSettings
from labeling.exchange.importing import ForeignLabel, JudgeColumns, enter, judged_pairs, ranking_labels
from labeling.exchange.uncertainty import read_uncertainty, score_command
from labeling.sanitize import labeler_name
from labeling.store.items import Item, read_items
from labeling.store.project import ItemKind, NewItem, Project
from labeling.store.rules import LabelingRules
from rlhf.data.counts import RecordCounts
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings
from rlhf.settings.recipe import load_recipe

_SUFFIXES = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class Sampling:
    """What `create` samples its items from."""

    config: Path
    overrides: tuple[str, ...]
    models: tuple[str, ...]
    temperatures: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Files that a project is made of."""

    items: Path | None = None
    sampling: Sampling | None = None
    """Instead of `items`."""
    gold: Path | None = None
    qualification: Path | None = None
    scores: Path | None = None
    instructions: Path | None = None


def create(location: str, values: Mapping[str, Any], sources: Sources) -> Project:
    """Make a project and print what is in it.

    Everything is read, checked or sampled before anything is made.

    Raises:
        UserError: a malformed file, rules that cannot be, or a project that exists.
    """
    rules = checked_rules(values)
    instructions = None if sources.instructions is None else _text(sources.instructions)
    new = list(_new_items(sources))
    project = Project.create(location, rules, instructions=instructions)
    num_added = project.add(new)
    print(f"create: {num_added:,} items ({_counts(project)}): {project.where}")
    if num_added < len(new):
        print(f"create: {len(new) - num_added:,} were left out because the same item stood there before")
    print(f"next: python -m labeling rank --project {shlex.quote(project.where)} --labeler NAME")
    return project


def checked_rules(values: Mapping[str, Any]) -> LabelingRules:
    """The rules with these values.

    Raises:
        UserError: one of them is out of range.
    """
    try:
        return LabelingRules.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{first['msg'][0].lower()}{first['msg'][1:]} ({first['input']} given)",
            where=f"`{first['loc'][0]}`",
            fix="See --help.",
        ) from None


def import_file(arguments: argparse.Namespace) -> None:
    """Enter the labels of a file into a project, which is made if there is none, and print what came of it.

    Raises:
        UserError: a malformed file, or columns that are half given.
    """
    labels = _labels(arguments)
    overlap = arguments.overlap or len({label.labeler for label in labels})
    project = Project.open_or_create(arguments.project, lambda: checked_rules({"overlap": overlap}))
    done = enter(project, labels)
    print(
        f"import: {done.items:,} new items, {done.labels:,} new labels "
        f"({done.replaced:,} in place of an earlier one), {done.repeated:,} entered before: {project.where}"
    )
    print(f"next: python -m labeling status --project {shlex.quote(project.where)}")


def _labels(arguments: argparse.Namespace) -> list[ForeignLabel]:
    table = (arguments.prompt, arguments.first, arguments.second, arguments.judge)
    if not any(table):
        source = SourceSettings(path=str(arguments.file))
        return ranking_labels(source, labeler=labeler_name(arguments.labeler))
    if not all(table):
        raise UserError(
            "a table of judged pairs needs four things",
            where="import",
            fix="Give --prompt, --first, --second and at least one --judge.",
        )
    if arguments.file.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"files that end in `{arguments.file.suffix}` cannot be read",
            where=str(arguments.file),
            fix=f"Give a file that ends in {', '.join(_SUFFIXES)}.",
        )
    codes = tuple(arguments.codes.split(","))
    if len(codes) != 3 or len(set(codes)) != 3:
        raise UserError("--codes are three different signs", where="import", fix="As in --codes 1,0,2.")
    prompt = arguments.prompt.replace("\\n", "\n")
    columns = JudgeColumns(prompt, arguments.first, arguments.second, tuple(arguments.judge), codes)
    return judged_pairs(arguments.file, columns)


def _new_items(sources: Sources) -> Iterator[NewItem]:
    for kind, path in (("gold", sources.gold), ("qualification", sources.qualification)):
        if path is not None:
            yield from _known(path, "gold" if kind == "gold" else "qualification")
    if sources.sampling is not None:
        yield from (NewItem(item) for item in _sampled(sources.sampling))
        return
    assert sources.items is not None
    _check_file(sources.items)
    items = read_items(sources.items)
    if sources.scores is None:
        for number, item in enumerate(items, start=1):
            yield NewItem(item, where=f"{sources.items}, item {number}")
        return
    unsure = read_uncertainty(sources.scores)
    missing = sum(item.key not in unsure for item in items)
    if missing:
        raise UserError(
            f"{missing:,} of {len(items):,} items have no score in it",
            where=str(sources.scores),
            fix=f"Score the same file: {score_command(sources.items)}",
        )
    for item in items:
        yield NewItem(item, priority=unsure[item.key], where=str(sources.items))


def _sampled(sampling: Sampling) -> list[Item]:
    recipe = load_recipe(sampling.config, sampling.overrides)
    settings = cast(LabelingSettings, recipe.section("labeling")).samples
    if settings is None:
        raise UserError(
            "the recipe has no `labeling.samples` group",
            where=str(recipe.path),
            fix="Add it, or choose a recipe that has it (configs/stories/recipe.yaml).",
        )
    from labeling.generation.mixture import (  # torch loads only when there is something to sample
        arms_of,
        sample_items,
    )

    counts = RecordCounts()
    arms = arms_of(recipe, sampling.models, sampling.temperatures or (settings.sampling.temperature,))
    items = sample_items(recipe, settings, arms, counts)
    counts.print("samples")
    return items


def _known(path: Path, kind: ItemKind) -> Iterator[NewItem]:
    """Items with known answers: rankings in any schema that the reward stage reads."""
    for label in ranking_labels(SourceSettings(path=str(path)), labeler="answer"):
        yield NewItem(label.item, kind=kind, answer=label.ranks, where=label.where)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            "there is no such file",
            where=str(path),
            fix='A line of it reads {"prompt": "…", "completions": ["…", "…"]}; `make samples` writes one.',
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        what = f"cannot read the instructions ({error.strerror})"
    except UnicodeDecodeError:
        what = "the instructions are not UTF-8 text"
    raise UserError(what, where=str(path), fix="Name a Markdown file, or leave --instructions out.")


def _counts(project: Project) -> str:
    kinds: tuple[tuple[ItemKind, str], ...] = (
        ("item", "to rank"),
        ("gold", "gold"),
        ("qualification", "qualification"),
    )
    return ", ".join(f"{project.num_items(kind):,} {name}" for kind, name in kinds if project.num_items(kind))

"""What later stages will need, looked at before the first one starts: files, scorers, packages, models.

`make sft reward ppo` says in an environment variable which goals it was given. Of the goals that follow, all
is checked that will not be made by the goals before them. A stage that was started alone checks the scorers
and columns that the recipe names for later stages: their data may still be on their way. Nothing is run or
downloaded, and torch is not imported.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf import optional
from rlhf.data.records import Demonstration, Prompt, Ranking
from rlhf.data.schemas import DEMONSTRATIONS, PROMPTS, RANKINGS, Schema
from rlhf.data.scorer_code import check_scorer
from rlhf.data.sources import check_source
from rlhf.environment import goals
from rlhf.errors import UserError
from rlhf.hub import local_model_folder
from rlhf.settings.groups import Settings, SourceSettings
from rlhf.settings.recipe import Recipe

_TRAINING = ("sft", "reward", "ppo")
_PARTS = {
    "demonstrations": ("demonstrations",),
    "samples": ("samples",),
    "rankings": ("rankings",),
    "constitution": ("constitution",),
    "revisions": ("constitution", "revisions"),
    "preferences": ("constitution", "preferences"),
}
"""Goal → where its settings are in the section `labeling`."""
_MADE_BY = {"revisions": ("revisions", "constitution"), "preferences": ("preferences", "constitution")}
"""Folder in the run → the goals that make it, where these are not its own name."""
_RANKINGS, _DEMONSTRATIONS = ("rankings", "people"), ("demonstrations", "responses", "helpful")
_QUANTIZED = ("int8", "nf4")


@dataclass(frozen=True)
class _Named:
    """A setting that names something outside the recipe."""

    key: str
    kind: str
    """`source`, or what `setting(names=...)` says: `scorer`, `model`, `file`."""
    value: Any

    @property
    def field(self) -> str:
        """The setting's own name, without an item's number."""
        return [part for part in self.key.split(".") if not part.isdecimal()][-1]


def check_ahead(recipe: Recipe, stage: str) -> None:
    """Check what the stages after `stage` will need.

    Raises:
        UserError: it is not there, or cannot be used.
    """
    given = goals()
    following = given[given.index(stage) + 1 :] if stage in given else []
    for number, goal in enumerate(following, start=len(given) - len(following)):
        _check_goal(recipe, goal, made=given[:number])
    for name in _after(stage):
        if name in recipe.sections and name not in following:
            for named in _walk(recipe.sections[name], name):
                _check_named(named, recipe, made=None)


def _after(stage: str) -> Sequence[str]:
    return _TRAINING[_TRAINING.index(stage) + 1 :] if stage in _TRAINING else _TRAINING


def _check_goal(recipe: Recipe, goal: str, *, made: Sequence[str]) -> None:
    """Check all that the goal needs but for what the goals `made` before it make."""
    if goal not in _TRAINING and goal not in _PARTS:
        return
    settings = _settings_of(recipe, goal)
    key = goal if goal in _TRAINING else ".".join(("labeling", *_PARTS[goal]))
    if settings is None:
        raise UserError(
            f"the recipe has no `{key}`, which `make {goal}` needs",
            where=str(recipe.path),
            fix=f"Add it, or leave the goal `{goal}` out.",
        )
    for named in _walk(settings, key):
        _check_named(named, recipe, made=made)
    if goal in ("revisions", "preferences"):
        _check_goal_model(recipe, made)
    if goal in ("reward", "ppo", "samples") and recipe.model.precision in _QUANTIZED:
        _check_installed("bitsandbytes", f"model.precision={recipe.model.precision}", "use fp32 or bf16")


def _check_goal_model(recipe: Recipe, made: Sequence[str]) -> None:
    """The models of the constitution, which stand beside the settings of its parts."""
    constitution = _settings_of(recipe, "constitution")
    assert constitution is not None
    for named in _walk(constitution, "labeling.constitution"):
        if named.kind in ("model", "file") and not named.key.startswith(
            ("labeling.constitution.revisions", "labeling.constitution.preferences")
        ):
            _check_named(named, recipe, made=made)


def _settings_of(recipe: Recipe, goal: str) -> Settings | None:
    if goal in _TRAINING:
        return recipe.sections.get(goal)
    found: Any = recipe.sections.get("labeling")
    for part in _PARTS[goal]:
        found = getattr(found, part, None)
    return found if isinstance(found, Settings) else None


def _walk(settings: Settings, key: str) -> Iterator[_Named]:
    """Every setting in a group that names something outside the recipe."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        extra = field.json_schema_extra
        names = extra.get("names") if isinstance(extra, dict) else None
        values = value if isinstance(value, list) else [value]
        for number, one in enumerate(values):
            at = f"{key}.{name}.{number}" if isinstance(value, list) else f"{key}.{name}"
            if isinstance(one, SourceSettings):
                yield _Named(at, "source", one)
            elif isinstance(one, Settings):
                yield from _walk(one, at)
            elif isinstance(names, str) and isinstance(one, str) and (name, one) != ("reward", "adapter"):
                yield _Named(at, names, one)


def _check_named(named: _Named, recipe: Recipe, *, made: Sequence[str] | None) -> None:
    """Check one setting; with `made` None only what no stage can make: scorers and columns."""
    try:
        if named.kind == "scorer":
            check_scorer(named.value)
        elif named.kind == "source":
            _check_source(named, recipe, made=made)
        elif made is not None:
            _check_path(named, recipe, made)
    except UserError as error:
        where = named.key if error.where is None else f"{named.key}: {error.where}"
        raise error.at(where) from None


def _check_source(named: _Named, recipe: Recipe, *, made: Sequence[str] | None) -> None:
    source: SourceSettings = named.value
    schemas: Sequence[Schema[Prompt]] | Sequence[Schema[Demonstration]] | Sequence[Schema[Ranking]] = PROMPTS
    if named.field in _RANKINGS:
        schemas = RANKINGS
    elif named.field in _DEMONSTRATIONS:
        schemas = DEMONSTRATIONS
    is_there = made is not None and not _will_be_made(source.path, recipe, made)
    check_source(source, schemas, run_folder=recipe.run_folder, is_there=is_there)


def _check_path(named: _Named, recipe: Recipe, made: Sequence[str]) -> None:
    if _will_be_made(named.value, recipe, made):
        return
    path = named.value.replace("{run}", str(recipe.run_folder))
    if named.kind == "model":
        local_model_folder(path, where=path)
    elif not Path(path).exists():
        fix = "Name a file that is there, or the goal that makes it before this one."
        raise UserError("there is no such file", where=path, fix=fix)


def _will_be_made(path: str, recipe: Recipe, made: Sequence[str]) -> bool:
    """Whether the goals before make the folder of the run that this path is in."""
    inside = path.removeprefix("{run}").removeprefix(str(recipe.run_folder)).removeprefix("/")
    folder = inside.partition("/")[0]
    return inside != path and any(goal in made for goal in _MADE_BY.get(folder, (folder,)))


def _check_installed(package: str, where: str, otherwise: str) -> None:
    with optional.as_installed():
        found = importlib.util.find_spec(package)
    if found is None:
        raise UserError(
            f"a later stage needs {package}, which is not installed",
            where=where,
            fix=f"python -m pip install {package}, in the environment that runs this; or {otherwise}.",
        )

"""What the two stages depend on, and whether they have work to do; nothing heavy loads until they have."""

import dataclasses
from pathlib import Path
from typing import Literal

from labeling.config import LabelingSettings
from labeling.constitution.config import (
    ConstitutionSettings,
    PreferencesSettings,
    RevisionsSettings,
)
from labeling.constitution.constitution import Constitution, load_constitution
from labeling.constitution.inputs import (
    model_inputs,
    part_details,
    preference_inputs,
    revision_inputs,
)
from rlhf.data.readers import MIXED
from rlhf.errors import UserError
from rlhf.runs.stage import StageRun
from rlhf.settings.groups import Settings
from rlhf.settings.recipe import Recipe

Name = Literal["revisions", "preferences"]
STAGES: tuple[Name, ...] = ("revisions", "preferences")


def run(recipe: Recipe, settings: ConstitutionSettings, names: tuple[Name, ...], *, clean: bool) -> None:
    """Run these stages, as far as the recipe has them.

    Raises:
        UserError: it has none of them, or whatever keeps a stage from its end.
    """
    if "preferences" in names and settings.preferences is not None:
        _check_mixed(recipe, settings.preferences)
    constitution = load_constitution(Path(settings.path), tags=settings.tags)
    wanted = [name for name in names if getattr(settings, name) is not None]
    if not wanted:
        missing = " and no ".join(f"`labeling.constitution.{name}` group" for name in names)
        raise UserError(
            f"the recipe has no {missing}",
            where=str(recipe.path),
            fix="Add it, or choose a recipe that has it (configs/tiny/recipe.yaml).",
        )
    for name in wanted:
        _run_stage(recipe, settings, constitution, name, clean=clean)


def _run_stage(
    recipe: Recipe, settings: ConstitutionSettings, constitution: Constitution, name: Name, *, clean: bool
) -> None:
    inputs = {"constitution": constitution.sha256} | model_inputs(recipe, settings)
    part = getattr(settings, name)
    if isinstance(part, RevisionsSettings):
        inputs |= revision_inputs(part, recipe.run_folder)
    else:
        inputs |= preference_inputs(part, recipe.run_folder)
    stage = StageRun.open(
        recipe,
        name,
        inputs,
        details=part_details(part),
        clean=clean,
        sections=("labeling", "run"),
        counted=_narrowed(recipe, settings, name),
    )
    if stage is not None:
        from labeling.constitution.run import StageWork  # torch and aiohttp load only when there is work

        with stage, StageWork.open(recipe, settings, constitution, stage, clean=clean) as running:
            running.make(part)


def _check_mixed(recipe: Recipe, settings: PreferencesSettings) -> None:
    """Before hours of comparisons: is there anything to mix, if the reward model is to learn from a mixture?

    Raises:
        UserError: there is not.
    """
    rankings = getattr(recipe.sections.get("reward"), "rankings", [])
    if not settings.people and any(source.path == MIXED for source in rankings):
        raise UserError(
            "`reward.rankings` is to be a mixture with people's rankings, and none are named",
            where="labeling.constitution.preferences.people",
            fix="Name files of rankings there, or train on the constitution's alone (LABELS=constitution).",
        )


def _narrowed(recipe: Recipe, settings: ConstitutionSettings, name: Name) -> Recipe:
    """The recipe without what belongs to the other stage or to other commands."""
    others: dict[str, Settings | None] = {other: None for other in STAGES if other != name}
    own = LabelingSettings(constitution=settings.model_copy(update=others))
    return dataclasses.replace(recipe, sections={**recipe.sections, "labeling": own})

"""What the two stages depend on, and whether they have work to do; nothing heavy loads until they have."""

import dataclasses
from pathlib import Path
from typing import Literal

from labeling.config import LabelingSettings
from labeling.constitution.config import (
    ConstitutionSettings,
    FeedbackSettings,
    PreferencesSettings,
    RevisionsSettings,
)
from labeling.constitution.constitution import Constitution, load_constitution
from rlhf.data.readers import MIXED
from rlhf.data.scorers import scorer_fingerprint
from rlhf.data.sources import source_fingerprints
from rlhf.errors import UserError
from rlhf.runs.stage import StageRun, sha256_file, tree_hash
from rlhf.settings.groups import Settings
from rlhf.settings.recipe import Recipe

Name = Literal["revisions", "preferences"]
STAGES: tuple[Name, ...] = ("revisions", "preferences")
_SAMPLES = "{run}/samples/samples.jsonl"


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


def completions_file(settings: PreferencesSettings, run_folder: Path) -> Path | None:
    """The file of completions to compare; None if the model writes them itself.

    Raises:
        UserError: there is no such file.
    """
    if settings.prompts:
        return None
    path = Path((settings.items or _SAMPLES).replace("{run}", str(run_folder)))
    if not path.is_file():
        raise UserError(
            "there is no such file",
            where=str(path),
            fix="Run `make samples` first, name a file of prompts with completions in "
            "`labeling.constitution.preferences.items`, or give `prompts` for the model to answer.",
        )
    return path


def model_folder(path: str, run_folder: Path) -> str:
    """A local model's folder or hub id, with the run's folder in its place.

    Raises:
        UserError: it lies in a run's folder in which it has not been made yet.
    """
    folder = path.replace("{run}", str(run_folder))
    if "{run}" in path and not Path(folder).is_dir():
        raise UserError(
            "there is no such model yet",
            where=folder,
            fix="Run `make sft` first, or let another model judge (labeling.constitution.feedback).",
        )
    return folder


def _run_stage(
    recipe: Recipe, settings: ConstitutionSettings, constitution: Constitution, name: Name, *, clean: bool
) -> None:
    inputs = {"constitution": constitution.sha256} | _model_inputs(recipe, settings)
    part = getattr(settings, name)
    if isinstance(part, RevisionsSettings):
        inputs |= _revision_inputs(part, recipe.run_folder)
    else:
        inputs |= _preference_inputs(part, recipe.run_folder)
    stage = StageRun.open(
        recipe,
        name,
        inputs,
        clean=clean,
        sections=("labeling", "run"),
        counted=_narrowed(recipe, settings, name),
    )
    if stage is not None:
        from labeling.constitution.run import Running  # torch and aiohttp load only when there is work

        with stage, Running.open(recipe, settings, constitution, stage, clean=clean) as running:
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


def _model_inputs(recipe: Recipe, settings: ConstitutionSettings) -> dict[str, str]:
    """Hashes of the local models; an endpoint's model is known by its name, a setting."""
    found = {}
    models: dict[str, FeedbackSettings | None] = {"feedback": settings.feedback, "writer": settings.writer}
    for role, model in models.items():
        if model is not None and model.local is not None:
            folder = model_folder(model.local.path, recipe.run_folder)
            found[role] = tree_hash(Path(folder)) if Path(folder).is_dir() else f"hub:{folder}"
            if model.local.adapter is not None:
                found[f"{role}.adapter"] = tree_hash(Path(model.local.adapter))
    return found


def _revision_inputs(settings: RevisionsSettings, run_folder: Path) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for name in ("prompts", "responses", "helpful"):
        inputs |= source_fingerprints(name, getattr(settings, name), run_folder=run_folder)
    return inputs | ({"scorer": scorer_fingerprint(settings.scorer)} if settings.scorer else {})


def _preference_inputs(settings: PreferencesSettings, run_folder: Path) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for name in ("prompts", "people"):
        inputs |= source_fingerprints(name, getattr(settings, name), run_folder=run_folder)
    items = completions_file(settings, run_folder)
    if items is not None:
        inputs["items"] = sha256_file(items)
    return inputs | ({"scorer": scorer_fingerprint(settings.scorer)} if settings.scorer else {})

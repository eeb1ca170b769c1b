"""What the two stages read: files and models, and the hashes that tell whether they changed."""

from pathlib import Path

from labeling.constitution.config import (
    ConstitutionSettings,
    FeedbackSettings,
    PreferencesSettings,
    RevisionsSettings,
)
from rlhf.data.scorer_code import scorer_details, scorer_fingerprint
from rlhf.data.sources import source_fingerprints
from rlhf.errors import UserError
from rlhf.runs.files import sha256_file, tree_hash
from rlhf.settings.recipe import Recipe

_SAMPLES = "{run}/samples/samples.jsonl"


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
        UserError: it belongs in a run's folder, and has not been made there yet.
    """
    folder = path.replace("{run}", str(run_folder))
    if "{run}" in path and not Path(folder).is_dir():
        raise UserError(
            "there is no such model yet",
            where=folder,
            fix="Run `make sft` first, or let another model judge (labeling.constitution.feedback).",
        )
    return folder


def model_inputs(recipe: Recipe, settings: ConstitutionSettings) -> dict[str, str]:
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


def part_details(settings: RevisionsSettings | PreferencesSettings) -> dict[str, str]:
    """What else tells whether a stage's inputs changed: see `StageRun.open`."""
    return scorer_details("scorer", settings.scorer) if settings.scorer else {}


def revision_inputs(settings: RevisionsSettings, run_folder: Path) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for name in ("prompts", "responses", "helpful"):
        inputs |= source_fingerprints(name, getattr(settings, name), run_folder=run_folder)
    return inputs | ({"scorer": scorer_fingerprint(settings.scorer)} if settings.scorer else {})


def preference_inputs(settings: PreferencesSettings, run_folder: Path) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for name in ("prompts", "people"):
        inputs |= source_fingerprints(name, getattr(settings, name), run_folder=run_folder)
    items = completions_file(settings, run_folder)
    if items is not None:
        inputs["items"] = sha256_file(items)
    return inputs | ({"scorer": scorer_fingerprint(settings.scorer)} if settings.scorer else {})

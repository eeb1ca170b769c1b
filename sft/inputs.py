"""What the stage's result depends on besides its settings; decided without importing torch."""

from rlhf.data.sources import model_identity, source_fingerprints
from rlhf.settings.recipe import Recipe
from sft.config import SFTSettings


def stage_inputs(recipe: Recipe, settings: SFTSettings) -> dict[str, str]:
    """Hashes of the demonstrations, of the tokenizer's texts and of the starting model.

    Raises:
        UserError: a file or the model's folder is missing.
    """
    run = recipe.run_folder
    inputs = source_fingerprints("demonstrations", settings.demonstrations, run_folder=run)
    if recipe.model.scratch:
        inputs |= source_fingerprints("tokenizer_prompts", settings.tokenizer_prompts, run_folder=run)
    if recipe.model.path is not None:
        inputs["model"] = model_identity(recipe.model.path, recipe.model.revision)
    return inputs

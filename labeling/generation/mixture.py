"""Items whose completions come from several models or temperatures, with a record of which wrote what.

Labelers never see that record, and the order in which they see the completions tells nothing of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labeling.config import SamplesSettings
from labeling.generation.sample import SAMPLE_NOISE, draw, load_everywhere
from labeling.store.items import Item
from rlhf.data.counts import RecordCounts
from rlhf.data.records import Turns, prompt_key
from rlhf.errors import UserError
from rlhf.runs.stage import require
from rlhf.settings.recipe import Recipe


@dataclass(frozen=True)
class Arm:
    """A model at a temperature."""

    name: str
    """What the completions' record says."""
    path: str
    """A folder or a hub id."""
    temperature: float


def arms_of(recipe: Recipe, models: Sequence[str], temperatures: Sequence[float]) -> list[Arm]:
    """Every model at every temperature; by default the run's SFT model, at the temperature of the samples.

    Raises:
        UserError: no model is named and the run has no SFT model, or a temperature is not positive.
    """
    bad = [temperature for temperature in temperatures if temperature <= 0]
    if bad:
        raise UserError(f"temperature {bad[0]} is not positive", where="--temperature", fix="Give another.")
    named = [(Path(model).name or model, model) for model in models]
    if not named:
        sft = require(recipe.run_folder, "sft")
        named = [(f"sft {sft.artifact_sha256[:12]}", str(sft.path()))]
    if len(dict(named)) < len(named):
        named = [(model, model) for model in models]  # folders of one name
    several = len(temperatures) > 1
    return [
        Arm(f"{name}, temperature {temperature:g}" if several else name, path, temperature)
        for name, path in named
        for temperature in temperatures
    ]


def sample_items(
    recipe: Recipe, settings: SamplesSettings, arms: Sequence[Arm], counts: RecordCounts
) -> list[Item]:
    """K completions of every prompt, shared out evenly among the arms; an arm more if K does not divide.

    What an arm writes to a prompt depends on the seed, its place among the arms and the prompt alone. A
    prompt that is too long for one of the models is left out for all.

    Raises:
        UserError: more arms than completions, a model that cannot be loaded, or no prompt that fits.
    """
    num = settings.completions_per_prompt
    if len(arms) > num:
        raise UserError(
            f"{len(arms)} models and temperatures, and {num} completions of each prompt",
            where="labeling.samples.completions_per_prompt",
            fix=f"Ask for {len(arms)} completions at least (at most 9), or name fewer.",
        )
    drawn = [
        _drawn(recipe, settings, arm, counts, num_texts=num // len(arms) + (k < num % len(arms)), place=k)
        for k, arm in enumerate(arms)
    ]
    items = []
    for key, (prompt, _, _) in drawn[0].items():
        if all(key in each for each in drawn):
            parts = [each[key] for each in drawn]
            items.append(
                Item(
                    prompt=prompt,
                    completions=tuple(text for _, texts, _ in parts for text in texts),
                    ended=tuple(end for _, _, ended in parts for end in ended),
                    models=tuple(
                        arm.name for arm, (_, texts, _) in zip(arms, parts, strict=True) for _ in texts
                    ),
                )
            )
    return items


def _drawn(
    recipe: Recipe, settings: SamplesSettings, arm: Arm, counts: RecordCounts, *, num_texts: int, place: int
) -> dict[str, tuple[str | Turns, tuple[str, ...], tuple[bool, ...]]]:
    """Prompt key → prompt, texts, whether each ended by itself; a prompt that is there twice counts once."""
    sampling = settings.sampling.model_copy(update={"temperature": arm.temperature})
    heated = settings.model_copy(update={"sampling": sampling})
    model = recipe.model.model_copy(update={"path": arm.path, "scratch": None})
    revision = recipe.model.revision if arm.path == recipe.model.path else None
    backbones = load_everywhere(arm.path, recipe.run, settings=model, revision=revision)
    own = counts if place == 0 else RecordCounts()  # every arm reads the same prompts: they count once
    return {
        prompt_key(each.prompt.prompt): (each.prompt.prompt, each.texts, each.ended)
        for each in draw(
            backbones,
            recipe,
            heated,
            own,
            num_texts=num_texts,
            noise=SAMPLE_NOISE + place,
            step="labeling.samples",
        )
    }

"""Prompts for PPO: read, cut to length, split into training and held-out."""

from dataclasses import dataclass
from pathlib import Path

from ppo.config import PPOSettings
from ppo.prompts import PromptSet
from rlhf.data.counts import RecordCounts
from rlhf.data.prompt_form import form_of_run, noted_form, warn_of_other_form
from rlhf.data.records import Prompt
from rlhf.data.sources import read_prompts, split_by_prompt
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.chat import check_room, length_fix, prompt_text
from rlhf.model.fitting import fit_prompt
from rlhf.model.remarks import note_remarks


@dataclass(frozen=True)
class Prompts:
    """Training and held-out prompts, no prompt on both sides, and what became of every record."""

    train: PromptSet
    held_out: PromptSet
    counts: RecordCounts


def load_prompts(backbone: Backbone, settings: PPOSettings, *, seed: int, run_folder: Path) -> Prompts:
    """Read the recipe's prompts and leave room for a response in each.

    Raises:
        UserError: a source cannot be read, a prompt is too long (under `length.over_length=error`), or too
            few are left.
    """
    check_room("ppo", settings.length, settings.sampling, context=backbone.max_length)
    records, counts = read_prompts(
        settings.prompts, seed=seed, run_folder=run_folder, form=form_of_run(run_folder)
    )
    warn_of_other_form("ppo", records, run_folder)
    train, held_out = split_by_prompt(
        records, fraction=settings.held_out_fraction, seed=seed, form=noted_form(run_folder)
    )
    sides = [_encode(backbone, side, settings, counts) for side in (train, held_out)]
    if not len(sides[0]) or not len(sides[1]):
        raise UserError(
            f"{len(sides[0])} prompts to train on and {len(sides[1])} held out; both sides need at least one",
            where="ppo.prompts",
            fix="Give more prompts, or change ppo.held_out_fraction.",
        )
    limit = settings.evaluation.num_prompts
    return Prompts(sides[0], sides[1].take(range(min(limit, len(sides[1])))), counts)


def _encode(
    backbone: Backbone, records: list[Prompt], settings: PPOSettings, counts: RecordCounts
) -> PromptSet:
    context = min(settings.length.max_tokens or backbone.max_length, backbone.max_length)
    fix = length_fix(
        "ppo",
        settings.length,
        context=backbone.max_length,
        max_response_tokens=settings.sampling.max_response_tokens,
    )
    prompts = PromptSet([], [])
    for record in records:
        fitted = fit_prompt(
            backbone.tokenizer,
            record.prompt,
            settings.sampling.max_response_tokens,
            context,
            settings.length.over_length,
            sampled=True,
            where=record.where or "ppo.prompts",
            fix=fix,
        )
        note_remarks(counts, "length", backbone.tokenizer, record.prompt)
        if fitted.outcome == "truncated":
            counts.add("length", "truncated")
        elif fitted.ids is None:
            counts.add("length", "no room for a response")
        if fitted.ids is not None:
            prompts.ids.append(fitted.ids)
            prompts.texts.append(prompt_text(fitted.prompt))
    return prompts

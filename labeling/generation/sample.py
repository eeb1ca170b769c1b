"""Texts that models write for a recipe: demonstrations by the base, completions to rank by the SFT model.

The noise of a text is a function of the seed, the prompt and the text's number, so a command that was
interrupted starts over and writes the same texts again.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from labeling.config import DemonstrationsSettings, SamplesSettings
from labeling.store.items import Item, write_items
from rlhf.data.counts import RecordCounts
from rlhf.data.prompt_form import form_of_run
from rlhf.data.records import Demonstration, Prompt, prompt_key, write_jsonl
from rlhf.data.sources import read_prompts
from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.chat import check_room, encode_completion, length_fix, prompt_text
from rlhf.model.fitting import fit_prompt
from rlhf.model.remarks import note_remarks
from rlhf.parallel.start import start_process
from rlhf.runs.progress import Progress, print_result, progress
from rlhf.runs.stage import StageRun, require
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import responses_text
from rlhf.settings.groups import ModelSettings, RunSettings
from rlhf.settings.recipe import Recipe

DEMONSTRATIONS = "demonstrations.jsonl"
SAMPLES = "samples.jsonl"
DEMONSTRATION_NOISE, SAMPLE_NOISE = 2**42, 2**43
"""Stand where an iteration would in a noise key: no other stage shares this noise."""

_BATCHES_AT_ONCE = 4
"""Batches that are drawn in one call, sorted by length, before the progress bar moves."""
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)]*(?=\s|\Z)")

SamplerSettings = DemonstrationsSettings | SamplesSettings


@dataclass(frozen=True)
class Drawn:
    """A prompt and what the model wrote after it."""

    prompt: Prompt
    texts: tuple[str, ...]
    ended: tuple[bool, ...]
    """Whether each text ended by itself and not at the longest response."""
    same_ids: tuple[bool, ...]
    """Whether each text gives back the tokens that were drawn, as a later stage encodes it."""


def make_demonstrations(recipe: Recipe, settings: DemonstrationsSettings, stage: StageRun) -> None:
    """Let the base model continue every prompt, cut after a sentence, and publish `demonstrations.jsonl`.

    Raises:
        UserError: the recipe has no pretrained model, a source cannot be read, or no continuation is left.
    """
    if recipe.model.path is None:
        raise UserError(
            "a model from scratch cannot continue a prompt yet",
            where="labeling.demonstrations",
            fix="Give a pretrained model (`model.path=...`), or write the demonstrations yourself.",
        )
    backbones = load_everywhere(
        recipe.model.path, recipe.run, settings=recipe.model, revision=recipe.model.revision
    )
    step, counts = "labeling.demonstrations", RecordCounts()
    records: list[Demonstration] = []
    same: list[bool] = []
    for drawn in draw(backbones, recipe, settings, counts, num_texts=1, noise=DEMONSTRATION_NOISE, step=step):
        text = first_sentences(drawn.texts[0], settings.sentences)
        same += drawn.same_ids
        if text is None:
            counts.add(step, f"fewer than {settings.sentences} sentences")
        else:
            records.append(Demonstration(prompt=drawn.prompt.prompt, completion=text))
    counts.print("demonstrations")
    if not records:
        raise UserError(
            f"no continuation has {settings.sentences} sentences",
            where=step,
            fix="Raise `sampling.max_response_tokens`, or lower `sentences`.",
        )
    lengths = [
        len(encode_completion(backbones[0].tokenizer, r.prompt, r.completion, exact=False)) for r in records
    ]
    metrics = {
        "demonstrations": len(records),
        "completion_tokens_mean": sum(lengths) / len(lengths),
        "completion_tokens_max": max(lengths),
        "same_tokens_ratio": sum(same) / len(same),
    }
    stage.publish(
        {DEMONSTRATIONS: lambda path: write_jsonl(path, records)},
        metrics=metrics,
        counts={"prompts": counts.accounts()},
    )
    rows = [
        ("demonstrations", f"{len(records):,}"),
        ("tokens, mean and longest", f"{metrics['completion_tokens_mean']:.1f}, {max(lengths)}"),
        ("file", str(stage.folder / DEMONSTRATIONS)),
    ]
    print_result("demonstrations", rows, stage.next_command("sft"))


def make_samples(recipe: Recipe, settings: SamplesSettings, stage: StageRun) -> None:
    """Let the run's SFT model complete every prompt K times and publish `samples.jsonl`.

    A completion that reached the longest response is kept, and `ended` says so.

    Raises:
        UserError: the run has no SFT model, or a source cannot be read.
    """
    sft = require(recipe.run_folder, "sft")
    backbones = load_everywhere(sft.path(), recipe.run, settings=recipe.model)
    step, counts, num_texts = "labeling.samples", RecordCounts(), settings.completions_per_prompt
    same: list[bool] = []
    items: list[Item] = []
    for drawn in draw(
        backbones, recipe, settings, counts, num_texts=num_texts, noise=SAMPLE_NOISE, step=step
    ):
        same += drawn.same_ids
        items.append(
            Item(
                prompt=drawn.prompt.prompt,
                completions=drawn.texts,
                ended=drawn.ended,
                model=sft.artifact_sha256,
            )
        )
    counts.print("samples")
    ended = [end for item in items for end in item.ended or ()]
    metrics = {
        "items": len(items),
        "ended_ratio": sum(ended) / len(ended),
        "same_tokens_ratio": sum(same) / len(same),
    }
    stage.publish(
        {SAMPLES: lambda path: write_items(path, items)},
        metrics=metrics,
        counts={"prompts": counts.accounts()},
    )
    rows = [
        ("prompts, completions of each", f"{len(items):,}, {num_texts}"),
        ("ended by themselves", f"{metrics['ended_ratio']:.1%}"),
        ("text gives back the tokens drawn", f"{metrics['same_tokens_ratio']:.1%}"),
        ("file", str(stage.folder / SAMPLES)),
    ]
    print_result("samples", rows, stage.next_command("rankings"))


def draw(
    backbones: Sequence[Backbone],
    recipe: Recipe,
    settings: SamplerSettings,
    counts: RecordCounts,
    *,
    num_texts: int,
    noise: int,
    step: str,
) -> Iterator[Drawn]:
    """`num_texts` continuations of every prompt of the settings' sources that fits, in their order.

    `backbones` are one model on one device or more, which share the prompts.

    `counts` receives what became of the prompts; what is dropped or truncated here counts under `step`.
    """
    backbone = backbones[0]
    check_room(step, settings.length, settings.sampling, context=backbone.max_length)
    # Demonstrations come before SFT, and do not depend on whether the run has been that far already.
    form = form_of_run(recipe.run_folder) if isinstance(settings, SamplesSettings) else "text"
    prompts, read = read_prompts(
        settings.prompts, seed=recipe.run.seed, run_folder=recipe.run_folder, form=form
    )
    counts.merge(read)
    fitting = list(_fitting(backbone, prompts, settings, counts, step=step))
    if not fitting:
        fix = f"Lower `{step}.sampling.max_response_tokens`, or truncate (`{step}.length.over_length`)."
        raise UserError("no prompt leaves room for a response", where=step, fix=fix)
    chunk = max(1, settings.sampling.batch_size * _BATCHES_AT_ONCE // num_texts)
    bar: Progress[int] = progress(len(fitting) * num_texts, step.partition(".")[2])

    def written(model: Backbone, part: Sequence[tuple[Prompt, list[int]]]) -> list[Drawn]:
        rollouts = sample(
            model,
            [ids for _, ids in part for _ in range(num_texts)],
            role=REFERENCE,
            settings=settings.sampling,
            keys=[(noise, _number(prompt), n) for prompt, _ in part for n in range(num_texts)],
            seed=recipe.run.seed,
        )
        texts, ended = responses_text(model, rollouts, settings.sampling), rollouts.ended_B.tolist()
        owners = [prompt for prompt, _ in part for _ in range(num_texts)]
        same = [
            _gives_back(model, prompt, text, ids, settings.sampling.stop)
            for prompt, text, ids in zip(owners, texts, rollouts.response_lists(), strict=True)
        ]
        rows = [slice(number * num_texts, (number + 1) * num_texts) for number in range(len(part))]
        return [
            Drawn(prompt, tuple(texts[own]), tuple(ended[own]), tuple(same[own]))
            for (prompt, _), own in zip(part, rows, strict=True)
        ]

    parts = [fitting[start : start + chunk] for start in range(0, len(fitting), chunk)]
    with bar, ThreadPoolExecutor(len(backbones)) as pool:
        for start in range(0, len(parts), len(backbones)):
            for drawn in pool.map(written, backbones, parts[start : start + len(backbones)]):
                bar.update(len(drawn) * num_texts)
                yield from drawn


def load_everywhere(
    path: str | Path, run: RunSettings, *, settings: ModelSettings, revision: str | None = None
) -> tuple[Backbone, ...]:
    """The model on every CUDA device there is, or on the one device that `run` names."""
    device = start_process(run).device
    devices = [device]
    if device.type == "cuda" and device.index is None:
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return tuple(
        Backbone.load(path, revision=revision, settings=settings, device=device) for device in devices
    )


def first_sentences(text: str, num: int) -> str | None:
    """The text up to the end of its sentence `num`, or None if it has fewer.

    A sentence ends with `.`, `!`, `?` or `…`, closing quotes or brackets included, before white space or the
    end of the text.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[num - 1]] if len(ends) >= num else None


def _fitting(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    settings: SamplerSettings,
    counts: RecordCounts,
    *,
    step: str,
) -> Iterator[tuple[Prompt, list[int]]]:
    """The prompts that leave room for the longest response, with their ids."""
    context = min(settings.length.max_tokens or backbone.max_length, backbone.max_length)
    fix = length_fix(
        step,
        settings.length,
        context=backbone.max_length,
        max_response_tokens=settings.sampling.max_response_tokens,
    )
    for prompt in prompts:
        fitted = fit_prompt(
            backbone.tokenizer,
            prompt.prompt,
            settings.sampling.max_response_tokens,
            context,
            settings.length.over_length,
            sampled=True,
            where=prompt.where or f"{step}, prompt {prompt_text(prompt.prompt)[:60]!r}",
            fix=fix,
        )
        note_remarks(counts, step, backbone.tokenizer, prompt.prompt)
        if fitted.outcome != "kept":
            reason = "truncated" if fitted.outcome == "truncated" else "longer than the context"
            counts.add(step, reason)
        if fitted.ids is not None:
            yield prompt, fitted.ids


def _gives_back(
    backbone: Backbone, prompt: Prompt, text: str, drawn: Sequence[int], stop: Sequence[str]
) -> bool:
    """Whether `text` becomes the ids that were drawn when it follows the prompt once more.

    Tokens that could be merged, special ones and white space that a chat template trims do not come back. A
    text that was cut, at a stop string say, is compared as far as it goes.
    """
    ids = encode_completion(backbone.tokenizer, prompt.prompt, text, eos=backbone.eos_ids, exact=False)[:-1]
    return list(drawn[: len(ids)]) == ids and (len(drawn) - len(ids) <= 1 or bool(stop))


def _number(prompt: Prompt) -> int:
    """63 bits that stand for the prompt in a noise key, whatever other prompts there are."""
    return int.from_bytes(hashlib.sha256(prompt_key(prompt.prompt).encode()).digest()[:8], "big") >> 1

"""Stage 1's main line: read → start from a model → fine-tune → evaluate → publish.

Left out of supervised fine-tuning as it is known elsewhere: losses on the prompt, label smoothing, NEFTune
noise, and generated reference answers; choosing the best of several checkpoints, because the last one is
what the learning rate's schedule aims at.
"""

import math
import shutil
from dataclasses import dataclass

from rlhf import preemption
from rlhf.data.counts import RecordCounts
from rlhf.data.prompt_form import FORM, form_of
from rlhf.data.records import Demonstration, Prompt
from rlhf.data.sources import read_demonstrations, read_prompts
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.chat import check_room
from rlhf.model.merging import merge
from rlhf.parallel.deepspeed.sharded import assemble, convert
from rlhf.parallel.start import start_process
from rlhf.runs import checkpoints
from rlhf.runs.checkpoints import Checkpoint
from rlhf.runs.progress import print_result, progress
from rlhf.runs.rank_checkpoints import newest_checkpoint
from rlhf.runs.stage import StageRun
from rlhf.runs.tracker import Tracker, track
from rlhf.settings.groups import LengthSettings
from rlhf.settings.recipe import Recipe
from rlhf.training.nonfinite import NotFiniteError
from sft.config import SFTSettings
from sft.data import Encoder, Examples, texts
from sft.evaluate import COLUMNS, Samples, held_out_metrics, sample_answers
from sft.model import (
    Start,
    check_tokenizer,
    choose_pad,
    published_dtype,
    set_tokens,
    start,
    training_precision,
    write,
)
from sft.packing import check_packing
from sft.steps import StepCallback
from sft.trainer import build_trainer


@dataclass(frozen=True)
class Prepared:
    """What training begins with."""

    start: Start
    examples: Examples
    counts: RecordCounts
    pad_id: int

    @property
    def form(self) -> dict[str, str]:
        """Whether the demonstrations are conversations, for the record counts; nothing without any."""
        records = [example.demonstration for example in (*self.examples.train, *self.examples.held_out)]
        return {FORM: form_of(records)} if records else {}


def train(recipe: Recipe, settings: SFTSettings, stage: StageRun) -> None:
    """Fine-tune, evaluate and publish; resumes from the newest checkpoint of a half-finished stage."""
    precision = training_precision(recipe.model)
    device = start_process(recipe.run, max_grad_norm=settings.max_grad_norm, precision=precision).device
    prepared = prepare(recipe, settings)
    prepared.counts.print("sft: demonstrations")
    found = newest_checkpoint(stage.folder) if stage.resuming else None
    resume_step = None if found is None else found.step
    stage.drop_replaced()
    with track(recipe, "sft", stage.folder, resume_step=resume_step) as tracker:
        model = prepared.start.model.to(device)
        before = held_out_metrics(model, prepared.examples.held_out)
        if resume_step is None:
            tracker.log(before, step=0)
        num_steps = 0
        if settings.method != "none":
            num_steps = fine_tune(recipe, settings, prepared, stage, tracker, found)
        finish(recipe, settings, prepared, stage, tracker, before=before, step=num_steps)


def prepare(recipe: Recipe, settings: SFTSettings) -> Prepared:
    """Read the demonstrations, load or make the model, and encode.

    Raises:
        UserError: from the data, the model, a demonstration that does not fit, or samples that cannot.
    """
    seed, run_folder = recipe.run.seed, recipe.run_folder
    check_tokenizer(recipe.model)
    records, counts = list[Demonstration](), RecordCounts()
    if settings.demonstrations:
        records, counts = read_demonstrations(
            settings.demonstrations, seed=seed, run_folder=run_folder, form="auto"
        )
    prompts: list[Prompt] = []
    if recipe.model.scratch and settings.tokenizer_prompts:
        prompts, _ = read_prompts(settings.tokenizer_prompts, seed=seed, run_folder=run_folder)
    begin = start(recipe.model, settings, texts=texts(records, prompts), seed=seed)
    if settings.demonstrations and settings.num_samples and settings.held_out_fraction:
        check_room("sft", LengthSettings(), settings.sampling, context=begin.context)
    encoder = Encoder(
        begin.tokenizer, begin.eos_ids, length=settings.length, context=begin.context, counts=counts
    )
    examples = encoder.split(records, fraction=settings.held_out_fraction, seed=seed)
    if settings.method != "none" and not examples.train:
        reasons = "".join(f", {reason}: {n:,}" for reason, n in counts.dropped("length").items())
        raise UserError(
            f"no demonstration is left to train on ({len(records)} were read{reasons})",
            where="sft.demonstrations",
            fix="Raise sft.length.max_tokens, lower sft.held_out_fraction, give more demonstrations, or set "
            "`model.chat_template` to one that writes answers as they are.",
        )
    both = (*examples.train, *examples.held_out)
    pad_id = choose_pad(begin, (i for example in both for i in example.prompt_ids + example.completion_ids))
    return Prepared(begin, examples, counts, pad_id)


def fine_tune(
    recipe: Recipe,
    settings: SFTSettings,
    prepared: Prepared,
    stage: StageRun,
    tracker: Tracker,
    found: Checkpoint | None,
) -> int:
    """Train, and leave the plain model in `prepared.start`; returns the number of optimizer steps.

    Raises:
        NotFiniteError: nothing but steps that are not finite came; the last good state is saved.
    """
    if settings.packing:
        check_packing(prepared.start.model, recipe.model.attention)
    trainer = build_trainer(recipe, settings, prepared.start, prepared.examples.train, stage.folder)
    if found is not None:
        trainer.resume_from(found)
    num_steps = math.ceil(settings.num_epochs * math.ceil(len(trainer.order) / settings.batch_size))
    held_out = prepared.examples.held_out
    with progress(num_steps, "sft") as bar:
        steps = StepCallback(
            trainer,
            tracker,
            settings,
            log_every_steps=recipe.tracking.log_every_steps,
            advance=bar.update,
            evaluate=lambda model: held_out_metrics(model, held_out),
        )
        try:
            with preemption.deferred():  # the callback saves and ends the training
                trainer.train()
                if steps.is_stopped:
                    preemption.stop()
        except NotFiniteError:
            trainer.save()
            raise
    prepared.start.model = merge(trainer.trained_model())
    return num_steps


def finish(
    recipe: Recipe,
    settings: SFTSettings,
    prepared: Prepared,
    stage: StageRun,
    tracker: Tracker,
    *,
    before: dict[str, float],
    step: int,
) -> None:
    """Evaluate the model as it will be stored, publish it, and print the result."""
    begin, held_out = prepared.start, prepared.examples.held_out
    dtype = published_dtype(recipe.model, settings)
    model = begin.model
    if dtype is not None:
        convert(model, dtype)
    set_tokens(begin, model, pad_id=prepared.pad_id, sampling=settings.sampling)
    after = held_out_metrics(model, held_out) if step else before
    if step:
        tracker.log(after, step=step)
    samples = answer(recipe, settings, begin, prepared)
    tracker.log(samples.metrics, step=step)
    tracker.table("sft/samples", COLUMNS, samples.rows, step=step)
    assemble(model)
    manifest = stage.publish(
        write_model=lambda folder: write(model, begin.tokenizer, folder),
        metrics=summary(before, after, samples),
        counts=prepared.counts.accounts() | prepared.form,
        wandb_url=tracker.url,
    )
    # A finished stage never resumes.
    shutil.rmtree(stage.folder / checkpoints.CHECKPOINTS, ignore_errors=True)
    tracker.finish({"artifact_sha256": manifest.artifact_sha256})
    print_result(
        "sft",
        [*table(before, after, samples), ("model", str(manifest.path()))],
        next_command=stage.next_command("reward"),
    )


def answer(recipe: Recipe, settings: SFTSettings, begin: Start, prepared: Prepared) -> Samples:
    """The finished model's answers to held-out prompts."""
    backbone = Backbone(begin.model, begin.tokenizer, "")
    return sample_answers(
        backbone,
        prepared.examples.held_out,
        settings.sampling,
        num_samples=settings.num_samples,
        seed=recipe.run.seed,
    )


def summary(before: dict[str, float], after: dict[str, float], samples: Samples) -> dict[str, float]:
    """The stage's final metrics, for the manifest."""
    metrics = {f"before_{key.removeprefix('sft/')}": value for key, value in before.items()}
    metrics |= {f"after_{key.removeprefix('sft/')}": value for key, value in after.items()}
    return metrics | {key.removeprefix("sft/"): value for key, value in samples.metrics.items()}


def table(before: dict[str, float], after: dict[str, float], samples: Samples) -> list[tuple[str, str]]:
    """The rows that the user sees at the end."""
    rows = [
        (
            key.removeprefix("sft/"),
            f"{before[key]:.3f} → {after[key]:.3f}" if before != after else f"{after[key]:.3f}",
        )
        for key in after
    ]
    return rows + [(key.removeprefix("sft/"), f"{value:.3f}") for key, value in samples.metrics.items()]

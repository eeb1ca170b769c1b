"""Stage 2's main line: train on groups, evaluate on held-out prompts, normalize, publish.

Left out of what the literature does: a margin that grows with the strength of a preference (soft labels say
it in probabilities), a language-modelling term next to the ranking loss, and ensembles.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from reward.config import RewardSettings
from reward.data import Group, Rankings, context_tokens, load_rankings
from reward.evaluate import HeldOut, report
from reward.model import Normalization, RewardCard, base_identity, measure_normalization
from reward.publish import write_model
from reward.trainer import Trainer
from rlhf import preemption
from rlhf.data.prompt_form import FORM
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.chat import check_room
from rlhf.model.fitting import fit_prompt
from rlhf.model.weights import gathered_weights
from rlhf.parallel.start import start_process
from rlhf.parallel.world import world
from rlhf.runs.progress import print_result, progress
from rlhf.runs.stage import StageRun, require
from rlhf.runs.tracker import Tracker, track
from rlhf.settings.recipe import Recipe
from rlhf.training.nonfinite import NotFiniteError

OverLength = Literal["error", "drop", "truncate_left"]


def train(recipe: Recipe, settings: RewardSettings, stage: StageRun) -> None:
    """Train, evaluate, normalize and publish; a half-finished stage resumes from its newest checkpoint."""
    run, seed = recipe.run_folder, recipe.run.seed
    start_process(recipe.run, max_grad_norm=settings.max_grad_norm, precision=recipe.model.precision)
    base_sha256 = base_identity(require(run, "sft"))
    backbone = Backbone.load(run / "sft" / "model", settings=recipe.model, device=world().device)
    data = load_rankings(backbone, settings, seed=seed, run_folder=run)
    data.counts.print("reward: rankings")
    check_samples(backbone, data, settings)
    held_out = HeldOut.prepare(data.held_out, settings, seed=seed)
    trainer = Trainer(backbone, data.train, settings, seed=seed)
    resumed = stage.resuming and trainer.restore(stage.folder)
    step = trainer.next_step if resumed else None
    stage.drop_replaced()
    with track(recipe, "reward", stage.folder, resume_step=step) as tracker:
        # Nothing is interrupted inside: `run_steps` asks between two steps whether a signal has come.
        with preemption.deferred():
            run_steps(trainer, held_out, stage, tracker, log_every=recipe.tracking.log_every_steps)
        normalization, sample_counts = reference_scores(backbone, data, settings, seed=seed)
        card = RewardCard(
            base_sha256=base_sha256,
            precision=recipe.model.precision,
            mean=normalization.mean,
            std=normalization.std,
            num_reference_samples=len(normalization.scores_S),
            eos_ids=list(backbone.eos_ids),
            max_tokens=context_tokens(backbone, settings),
        )
        record_counts = {
            "rankings": data.counts.accounts(),
            "pairs": data.pairs(),
            "normalization": sample_counts,
            FORM: data.form,
        }
        with gathered_weights(backbone):
            finish(trainer, held_out, card, record_counts, stage=stage, tracker=tracker)


def check_samples(backbone: Backbone, data: Rankings, settings: RewardSettings) -> None:
    """Say, before any training, which prompts leave no room for a normalization sample.

    Raises:
        UserError: none leaves any.
    """
    _, counts = _sampling_prompts(backbone, data.train, settings)
    without_room = counts["prompts_without_room"]
    if without_room:
        num_prompts = counts["prompts"] + without_room
        print(f"reward: {without_room} of {num_prompts} prompts leave no room for a normalization sample")


def run_steps(
    trainer: Trainer, held_out: HeldOut, stage: StageRun, tracker: Tracker, *, log_every: int
) -> None:
    """Take all steps that are left, with their evaluations and checkpoints; a preemption ends them early."""
    settings = trainer.settings
    eval_every = settings.eval_every_steps if held_out.groups else 0
    for _ in progress(range(trainer.next_step, trainer.num_steps), desc="reward"):
        with _saving_if_not_finite(trainer, stage):
            trainer.step()
        step = trainer.next_step
        is_last = step == trainer.num_steps
        is_best = False
        if step % log_every == 0 or is_last:
            tracker.log({f"reward/{name}": value for name, value in trainer.take_window().items()}, step=step)
        if eval_every and step % eval_every == 0 and not is_last:  # the last one is evaluated by `finish`
            metrics = held_out.metrics(trainer.score_groups(held_out.groups))
            tracker.log({f"reward/heldout_{name}": value for name, value in metrics.items()}, step=step)
            is_best = trainer.best.offer(step, -metrics["loss_nats"])
        is_due = step % settings.checkpoint_every_steps == 0 or is_last
        # Ranks decide together: a signal may reach one of them a step earlier than another.
        stops = world().any(preemption.requested())
        if is_due or is_best or stops:
            trainer.save(stage.folder)
        if stops:
            preemption.stop()


@contextmanager
def _saving_if_not_finite(trainer: Trainer, stage: StageRun) -> Iterator[None]:
    """Leave a checkpoint behind when nothing but steps that are not finite comes."""
    try:
        yield
    except NotFiniteError:
        trainer.save(stage.folder)
        raise


def reference_scores(
    backbone: Backbone, data: Rankings, settings: RewardSettings, *, seed: int
) -> tuple[Normalization, dict[str, int]]:
    """Raw scores of samples of the SFT policy on training prompts, and what was used.

    Raises:
        UserError: no training prompt leaves room for a sample.
    """
    prompts, counts = _sampling_prompts(backbone, data.train, settings)
    normalization = measure_normalization(
        backbone,
        prompts,
        settings.sampling,
        num_samples=settings.num_normalization_samples,
        max_tokens=settings.micro_batch_tokens,
        seed=seed,
    )
    counts |= {"samples": len(normalization.scores_S), "ended": normalization.num_ended}
    return normalization, counts


def finish(
    trainer: Trainer,
    held_out: HeldOut,
    card: RewardCard,
    record_counts: dict[str, Any],
    *,
    stage: StageRun,
    tracker: Tracker,
) -> None:
    """Evaluate and publish the reward model, log its metrics, and say what came out."""
    step = trainer.num_steps
    held_out_metrics: dict[str, float] = {}
    if held_out.groups:
        scores = trainer.score_groups(held_out.groups)
        held_out_metrics = held_out.metrics(scores)
        columns, rows = held_out.table(scores, card, num_groups=trainer.settings.num_table_rows)
        tracker.table("reward/heldout", columns, rows, step=step)
    metrics = {f"heldout_{name}": value for name, value in held_out_metrics.items()}
    metrics |= {"offset": card.mean, "spread": card.std}
    tracker.log({f"reward/{name}": value for name, value in metrics.items()}, step=step)
    manifest = stage.publish(
        write_model=lambda folder: write_model(trainer.backbone, card, folder),
        metrics=metrics | {"num_steps": step, "skipped_steps": trainer.guard.skipped_steps},
        counts=record_counts,
        wandb_url=tracker.url,
    )
    tracker.finish({"artifact_sha256": manifest.artifact_sha256})
    print_result(
        "reward",
        [
            *report(held_out_metrics),
            ("raw score of SFT samples", f"mean {card.mean:+.3f}, std {card.std:.3f}"),
            ("reward model", str(stage.folder / "model")),
        ],
        next_command=stage.next_command("ppo"),
    )


def _sampling_prompts(
    backbone: Backbone, groups: Sequence[Group], settings: RewardSettings
) -> tuple[list[list[int]], dict[str, int]]:
    """Different training prompts with room for a whole sample, and how many have none.

    Prompts that are too long are shortened if `length.over_length` says so.
    """
    check_room("reward", settings.length, settings.sampling, context=backbone.max_length)
    prompts = {group.key: group for group in groups}
    context = context_tokens(backbone, settings)
    room = settings.sampling.max_response_tokens
    # A prompt of a ranking that fits may leave no room for a sample: that is no error of the data.
    over_length: OverLength = "drop"
    if settings.length.over_length == "truncate_left":
        over_length = "truncate_left"
    kept: list[list[int]] = []
    for group in prompts.values():
        fitted = fit_prompt(
            backbone.tokenizer,
            group.prompt if group.encoded is None else group.encoded,
            room,
            context,
            over_length,
            prompt_ids=group.prompt_ids,
        )
        if fitted.ids is not None:
            kept.append(fitted.ids)
    if not kept:
        raise UserError(
            f"no training prompt leaves room for {room} sampled tokens within {context}",
            where="reward.sampling.max_response_tokens",
            fix="Lower it, set reward.length.over_length=truncate_left, or raise reward.length.max_tokens "
            f"(the model sees {backbone.max_length} tokens).",
        )
    return kept, {"prompts": len(prompts), "prompts_without_room": len(prompts) - len(kept)}

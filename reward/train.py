"""Stage 2's main line: train on groups, measure on held-out prompts, normalize, publish.

Left out of what the literature does: a margin that grows with the strength of a preference (soft labels say
it in probabilities), a language-modelling term beside the ranking loss, and ensembles.
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
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.chat import check_room, fit
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
    """Train, measure, normalize and publish; goes on from the newest checkpoint of a half-finished stage."""
    run, seed = recipe.run_folder, recipe.run.seed
    ours = start_process(recipe.run, max_grad_norm=settings.max_grad_norm, precision=recipe.model.precision)
    base_sha256 = base_identity(require(run, "sft"))
    backbone = Backbone.load(run / "sft" / "model", settings=recipe.model, device=ours.device)
    data = load_rankings(backbone, settings, seed=seed, run_folder=run)
    data.counts.print("reward: rankings")
    check_samples(backbone, data, settings)
    held_out = HeldOut.prepare(data.held_out, settings, seed=seed)
    trainer = Trainer(backbone, data.train, settings, seed=seed)
    resumed = stage.resuming and trainer.restore(stage.folder)
    step = trainer.next_step if resumed else None
    stage.drop_replaced()
    with track(recipe, "reward", stage.folder, resume_step=step) as tracker:
        with preemption.deferred():
            run_steps(trainer, held_out, stage, tracker, log_every=recipe.tracking.log_every_steps)
        measured, counts = reference_scores(backbone, data, settings, seed=seed)
        card = RewardCard(
            base_sha256=base_sha256,
            precision=recipe.model.precision,
            offset=measured.offset,
            spread=measured.spread,
            num_reference_samples=len(measured.scores_S),
            eos_ids=list(backbone.eos_ids),
            max_tokens=context_tokens(backbone, settings),
        )
        record_counts = {"rankings": data.counts.to_json(), "pairs": data.pairs(), "normalization": counts}
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
    """Take all steps that are left, with their checkpoints and measurements; a preemption ends them early."""
    every, settings = trainer.settings.eval_every_steps if held_out.groups else 0, trainer.settings
    for _ in progress(range(trainer.next_step, trainer.num_steps), desc="reward"):
        with _saving_if_not_finite(trainer, stage):
            trainer.step()
        step, is_last, is_best = trainer.next_step, trainer.next_step == trainer.num_steps, False
        if step % log_every == 0 or is_last:
            tracker.log({f"reward/{name}": value for name, value in trainer.take_window().items()}, step=step)
        if every and step % every == 0 and not is_last:
            metrics = held_out.metrics(trainer.score_groups(held_out.groups))
            tracker.log({f"reward/heldout_{name}": value for name, value in metrics.items()}, step=step)
            is_best = trainer.best.offer(step, -metrics["loss_nats"])
        due = step % settings.checkpoint_every_steps == 0 or is_last
        stops = world().any(preemption.requested())
        if due or is_best or stops:
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
    measured = measure_normalization(
        backbone,
        prompts,
        settings.sampling,
        num_samples=settings.num_normalization_samples,
        max_tokens=settings.micro_batch_tokens,
        seed=seed,
    )
    return measured, counts | {"samples": len(measured.scores_S), "ended": measured.num_ended}


def finish(
    trainer: Trainer,
    held_out: HeldOut,
    card: RewardCard,
    record_counts: dict[str, Any],
    *,
    stage: StageRun,
    tracker: Tracker,
) -> None:
    """Measure and publish the reward model, log its figures, and say what came out."""
    step, num_rows = trainer.num_steps, trainer.settings.num_table_rows
    measured: dict[str, float] = {}
    if held_out.groups:
        scores = trainer.score_groups(held_out.groups)
        measured = held_out.metrics(scores)
        columns, rows = held_out.table(scores, card, num_groups=num_rows)
        tracker.table("reward/heldout", columns, rows, step=step)
    metrics = {f"heldout_{name}": value for name, value in measured.items()}
    metrics |= {"offset": card.offset, "spread": card.spread}
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
            *report(measured),
            ("raw score of SFT samples", f"mean {card.offset:+.3f}, spread {card.spread:.3f}"),
            ("reward model", str(stage.folder / "model")),
        ],
        next_command=stage.next_command("ppo"),
    )


def _sampling_prompts(
    backbone: Backbone, groups: Sequence[Group], settings: RewardSettings
) -> tuple[list[list[int]], dict[str, int]]:
    """Different training prompts with room for a whole sample, shortened if the policy is to truncate."""
    check_room("reward", settings.length, settings.sampling, context=backbone.max_length)
    prompts = {group.key: group.prompt_ids for group in groups}
    context, room = context_tokens(backbone, settings), settings.sampling.max_response_tokens
    policy: OverLength = "truncate_left" if settings.length.over_length == "truncate_left" else "drop"
    bos_id = backbone.tokenizer.bos_token_id
    fitted = [fit(ids, room, context, policy, bos_token_id=bos_id)[0] for ids in prompts.values()]
    kept = [ids for ids in fitted if ids is not None]
    if not kept:
        raise UserError(
            f"no training prompt leaves room for {room} sampled tokens within {context}",
            where="reward.sampling.max_response_tokens",
            fix="Lower it, set reward.length.over_length=truncate_left, or raise reward.length.max_tokens "
            f"(the model sees {backbone.max_length} tokens).",
        )
    return kept, {"prompts": len(prompts), "prompts_without_room": len(prompts) - len(kept)}

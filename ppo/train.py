"""Stage 3's main line: rollout → score → advantages → update → log, once an iteration.

Left out of PPO as the literature knows it: an entropy bonus (the KL penalty keeps entropy up), shared
policy and value trunks by default (a setting), reward whitening across iterations (the reward model is
normalized once, on the SFT policy's samples), and any term of the pretraining loss.
"""

import math
import time

import numpy as np
import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.data import Prompts, load_prompts
from ppo.evaluate import Evaluation, Evaluator, merged_gap, side_by_side
from ppo.keeper import Keeper
from ppo.kl import adapt, k3
from ppo.models import POLICY, build_roles
from ppo.rollout import Sampled, collect, experience, final_scores, schedule_prompts, score_values
from ppo.update import Updater
from reward.model import base_identity
from rlhf import preemption
from rlhf.data.scorers import load_scorer
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.weights import gathered_weights
from rlhf.parallel.start import start_process
from rlhf.parallel.world import world
from rlhf.runs.manifest import require
from rlhf.runs.progress import print_result, progress
from rlhf.runs.stage import StageRun, Writer
from rlhf.runs.tracker import Tracker, track
from rlhf.settings.recipe import Recipe
from rlhf.statistics.masked import masked_mean, masked_variance


class PPO:
    """The state of a run between two iterations, and what an iteration does to it."""

    def __init__(self, recipe: Recipe, settings: PPOSettings) -> None:
        self.recipe, self.settings, self.seed = recipe, settings, recipe.run.seed
        run = recipe.run_folder
        start_process(recipe.run, max_grad_norm=settings.max_grad_norm, precision=recipe.model.precision)
        sft = require(run, "sft")
        self.backbone = Backbone.load(run / "sft" / "model", settings=recipe.model, device=world().device)
        self.data: Prompts = load_prompts(self.backbone, settings, seed=self.seed, run_folder=run)
        self.reward = build_roles(
            self.backbone,
            settings,
            reward_folder=run / "reward" / "model" if settings.reward == "adapter" else None,
            base_sha256=base_identity(sft),
            prompts=self.data.train.ids,
            seed=self.seed,
        )
        self.updater = Updater(self.backbone, settings, seed=self.seed)
        gold = settings.evaluation.gold
        self.evaluator = Evaluator(
            self.backbone,
            self.data.held_out,
            self.reward,
            load_scorer(gold) if gold else None,
            settings,
            seed=self.seed,
        )
        self.kl_coefficient = settings.kl.coefficient
        self.next_iteration = 0

    def iterate(self, tracker: Tracker) -> dict[str, float]:
        """One iteration of PPO; returns its figures."""
        started, iteration, settings = time.perf_counter(), self.next_iteration, self.settings
        indices, keys = schedule_prompts(len(self.data.train), iteration, settings, seed=self.seed)
        prompts = self.data.train.take(indices)
        cpu_started = time.process_time()
        with gathered_weights(self.backbone):
            sampled = collect(
                self.backbone, prompts, keys, self.reward, settings, role=POLICY, seed=self.seed
            )
            values_BT = score_values(self.backbone, sampled.own, settings)
        values_BT = world().unshard_tensor(values_BT, len(prompts))
        cpu = world().sum({"rollout_cpu_seconds": time.process_time() - cpu_started})
        num_unscored = len(sampled.rollouts) - int(sampled.scores_B.isfinite().sum())
        scored = sampled.with_finite_scores()
        if scored is None:
            return self._skip_iteration(num_unscored)
        sampled, values_BT = scored, values_BT[scored.rows_B, : scored.mask_BT.shape[1]]
        batch, raw_advantages_BT = experience(
            sampled, values_BT, settings, kl_coefficient=self.kl_coefficient
        )
        updates = self.updater.update(batch, iteration=iteration) | cpu
        metrics = describe(sampled, values_BT, batch.returns_BT, raw_advantages_BT, settings) | updates
        metrics["num_unscored_rollouts"] = float(num_unscored)
        metrics["kl_coefficient"] = self.kl_coefficient
        metrics["policy_learning_rate"] = self.updater.optimization.rate
        self._adapt_kl(metrics["kl_nats_per_response"], len(sampled.rollouts))
        self.next_iteration += 1
        self._show_samples(sampled, tracker)
        metrics["iteration_seconds"] = time.perf_counter() - started
        return {f"ppo/{name}": value for name, value in metrics.items()}

    def evaluate(self) -> tuple[Evaluation, dict[str, float]]:
        """Measure the policy on the held-out prompts."""
        measured = self.evaluator.evaluate(POLICY if self.next_iteration else REFERENCE)
        return measured, {f"ppo/heldout_{name}": value for name, value in measured.metrics.items()}

    def evaluates_now(self) -> bool:
        """Whether a measurement is due after the iteration that has just ended."""
        every = self.settings.evaluation.every_iterations
        return self.next_iteration == self.settings.num_iterations or bool(
            every and self.next_iteration % every == 0
        )

    def saves_now(self) -> bool:
        """Whether a checkpoint is due after the iteration that has just ended."""
        done, settings = self.next_iteration, self.settings
        return done == settings.num_iterations or done % settings.checkpoint_every_iterations == 0

    def _skip_iteration(self, num_unscored: int) -> dict[str, float]:
        """Go on to the next iteration; the figures of one in which no response has a finite score.

        Raises:
            NotFiniteError: several in a row had none.
        """
        self.updater.guard.passes([math.nan])
        self.next_iteration += 1
        return {"ppo/num_unscored_rollouts": float(num_unscored), "ppo/num_steps": 0.0}

    def _adapt_kl(self, kl: float, num_responses: int) -> None:
        target, horizon = self.settings.kl.target, self.settings.kl.horizon
        if target is not None:
            self.kl_coefficient = adapt(
                self.kl_coefficient, kl=kl, target=target, num_responses=num_responses, horizon=horizon
            )

    def _show_samples(self, sampled: Sampled, tracker: Tracker) -> None:
        every = self.settings.sample_table_every
        if not every or self.next_iteration % every:
            return
        rows = [
            [sampled.prompts[i], sampled.responses[i], float(sampled.scores_B[i]), float(sampled.kl_B[i]),
             int(sampled.rollouts.response_lengths_B[i])]
            for i in range(min(8, len(sampled.rollouts)))
        ]  # fmt: skip
        columns = ["prompt", "response", "reward", "kl_nats", "tokens"]
        tracker.table("ppo/rollouts", columns, rows, step=self.next_iteration)


def train(recipe: Recipe, settings: PPOSettings, stage: StageRun) -> None:
    """Train, measure and publish; goes on from the newest checkpoint of a half-finished stage."""
    ppo = PPO(recipe, settings)
    keeper = Keeper(ppo, stage)
    resumed = stage.resuming and keeper.restore()
    ppo.data.counts.print("ppo: prompts")
    stage.drop_replaced()
    with track(recipe, "ppo", stage.folder, resume_step=ppo.next_iteration if resumed else None) as tracker:
        before = ppo.evaluator.evaluate(REFERENCE)
        if resumed:
            keeper.restore_rng()  # a scorer may have drawn random numbers just now
        else:
            tracker.log({f"ppo/heldout_{name}": value for name, value in before.metrics.items()}, step=0)
            keeper.mark()
        with keeper.saving_if_stopped():
            run_iterations(ppo, keeper, tracker)
            with gathered_weights(ppo.backbone):
                finish(ppo, keeper, stage, tracker, before)


def run_iterations(ppo: PPO, keeper: Keeper, tracker: Tracker) -> None:
    """All iterations that are left, with their measurements and checkpoints."""
    for _ in progress(range(ppo.next_iteration, ppo.settings.num_iterations), desc="ppo"):
        metrics, is_best = ppo.iterate(tracker), False
        if ppo.evaluates_now():
            measured, named = ppo.evaluate()
            metrics, is_best = metrics | named, keeper.judge(measured)
        tracker.log(metrics, step=ppo.next_iteration)
        keeper.mark()
        if is_best or ppo.saves_now():
            keeper.save()
        preemption.check()


def finish(ppo: PPO, keeper: Keeper, stage: StageRun, tracker: Tracker, before: Evaluation) -> None:
    """Compare with before and with best-of-n, publish the policy, and say what came out."""
    settings = ppo.settings
    published = keeper.choose_best() if settings.publish == "best" else ppo.next_iteration
    after, _ = ppo.evaluate()
    best = ppo.evaluator.best_of_n()
    metrics = summary(before, after, best, settings)
    columns, rows = side_by_side(before, after, settings.evaluation.num_table_rows)
    tracker.table("ppo/before_after", columns, rows, step=ppo.next_iteration)
    outputs: dict[str, Writer] = {
        "model": lambda folder: ppo.backbone.export_adapter(
            POLICY, folder, task_type="CAUSAL_LM", base_path="sft/model"
        )
    }
    results = _table(before, after, best)
    if settings.publish == "best":
        metrics["published_iteration"] = float(published)
        results.append(("published", f"the policy of iteration {published}"))
    if settings.export_merged:
        metrics |= world().run_on_rank0(lambda: _merge(ppo, after, outputs))
        results.append(("merged, from the policy", f"{metrics['merged_gap_nats_mean']:.1e} nats per token"))
    manifest = stage.publish(
        outputs, metrics=metrics, counts=ppo.data.counts.to_json(), wandb_url=tracker.url
    )
    tracker.finish(
        {f"ppo/{name}": value for name, value in metrics.items()}
        | {"artifact_sha256": manifest.artifact_sha256}
    )
    print_result(
        "ppo",
        [*results, ("policy adapter", str(stage.folder / "model"))],
        next_command=stage.next_command("chat"),
    )


def _merge(ppo: PPO, after: Evaluation, outputs: dict[str, Writer]) -> dict[str, float]:
    """Make the merged policy one of the outputs; returns how far it is from the policy itself."""
    merged = ppo.backbone.merged(POLICY)
    outputs["merged"] = merged.save
    return merged_gap(after.sampled, merged, ppo.settings)


def describe(
    sampled: Sampled, values_BT: Tensor, returns_BT: Tensor, advantages_BT: Tensor, settings: PPOSettings
) -> dict[str, float]:
    """An iteration's figures that are known before its updates."""
    mask_BT, rollouts = sampled.mask_BT, sampled.rollouts
    explained = 1 - masked_variance(returns_BT - values_BT, mask_BT) / masked_variance(
        returns_BT, mask_BT
    ).clamp(min=1e-12)
    k3_BT = k3(sampled.logprobs_BT, sampled.reference_logprobs_BT)
    return {
        "reward_mean": float(final_scores(sampled, settings).mean()),
        "reward_std": float(sampled.scores_B.std(correction=0)),
        "kl_nats_per_response": float(sampled.kl_B.mean()),
        "kl_k3_nats_per_response": float(torch.where(mask_BT, k3_BT, 0).sum(1).mean()),
        "response_tokens_mean": float(rollouts.response_lengths_B.float().mean()),
        "eos_rate": float(rollouts.ended_B.float().mean()),
        "entropy": float(masked_mean(rollouts.sampled_entropy_BT, mask_BT)),
        "value_mean": float(masked_mean(values_BT, mask_BT)),
        "value_explained_variance": float(explained),
        "advantage_std": float(masked_variance(advantages_BT, mask_BT).sqrt()),
        "sampler_gap_nats_max": float(sampled.sampler_gap_N.max()),
        "sampler_gap_nats_mean": float(sampled.sampler_gap_N.mean()),
    }


def summary(
    before: Evaluation, after: Evaluation, best: dict[int, dict[str, float]], settings: PPOSettings
) -> dict[str, float]:
    """The stage's final figures, for the manifest and the last line of the metrics."""
    metrics = {f"before_{name}": value for name, value in before.metrics.items()}
    metrics |= {f"after_{name}": value for name, value in after.metrics.items()}
    for n, values in best.items():
        metrics |= {f"best_of_{n}_{name}": value for name, value in values.items()}
    ceiling = settings.evaluation.gold_best
    if ceiling is not None and before.gold is not None:
        gap = ceiling - before.metrics["gold_mean"]
        metrics["gold_gap_closed"] = (after.metrics["gold_mean"] - before.metrics["gold_mean"]) / max(
            gap, 1e-12
        )
    assert np.isfinite(list(metrics.values())).all()
    return metrics


def _table(before: Evaluation, after: Evaluation, best: dict[int, dict[str, float]]) -> list[tuple[str, str]]:
    rows = [(name, f"{before.metrics[name]:.3f} → {after.metrics[name]:.3f}") for name in after.metrics]
    for n, values in best.items():
        rows.append((f"best of {n}", ", ".join(f"{name} {value:.3f}" for name, value in values.items())))
    return rows

"""Stage 3's main line: sample → score → advantages → update → log, once an iteration.

Left out of PPO as the literature knows it: an entropy bonus (the KL penalty keeps entropy up), shared
policy and value trunks by default (a setting), reward whitening across iterations (the reward model is
normalized once, on the SFT policy's samples), and any term of the pretraining loss.
"""

import math

from ppo.config import PPOSettings
from ppo.data import Prompts, load_prompts
from ppo.evaluate import Evaluation, Evaluator, side_by_side
from ppo.experience import Experience, compute_advantages
from ppo.keeper import Keeper, RunState
from ppo.kl import adapt
from ppo.merge import MERGED, Drawn, merge_policy
from ppo.metrics import IterationTimer, describe, named, named_held_out, report, summary
from ppo.models import POLICY, build_roles
from ppo.prompts import PromptSchedule
from ppo.publish import write_policy
from ppo.rollout import RolloutScorer, Sampler, Scored
from ppo.sampler_gap import check_sampler_gap
from ppo.update import Updater
from reward.model import base_identity
from rlhf import preemption
from rlhf.data.scorers import load_scorer
from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.weights import gathered_weights
from rlhf.parallel.start import start_process
from rlhf.parallel.world import world
from rlhf.runs.manifest import require
from rlhf.runs.progress import print_result, progress
from rlhf.runs.stage import StageRun
from rlhf.runs.tracker import Tracker, track
from rlhf.settings.recipe import Recipe

_NUM_SHOWN = 8
"""Rollouts in a table of an iteration."""


class PPO:
    """A policy in training: what an iteration needs, and what it changes (`state`)."""

    def __init__(self, recipe: Recipe, settings: PPOSettings) -> None:
        self.settings = settings
        run, seed = recipe.run_folder, recipe.run.seed
        start_process(recipe.run, max_grad_norm=settings.max_grad_norm, precision=recipe.model.precision)
        sft = require(run, "sft")
        self.backbone = Backbone.load(run / "sft" / "model", settings=recipe.model, device=world().device)
        self.data: Prompts = load_prompts(self.backbone, settings, seed=seed, run_folder=run)
        self.reward = build_roles(
            self.backbone,
            settings,
            reward_folder=run / "reward" / "model" if settings.reward == "adapter" else None,
            base_sha256=base_identity(sft),
            prompts=self.data.train.ids,
            seed=seed,
        )
        self.prompts = PromptSchedule(
            self.data.train, settings.rollouts_per_iteration, settings.samples_per_prompt, seed
        )
        self.sampler = Sampler(self.backbone, settings, seed)
        self.scorer = RolloutScorer(self.backbone, self.reward, settings)
        self.updater = Updater(self.backbone, settings, seed=seed)
        gold = settings.evaluation.gold
        self.evaluator = Evaluator(
            self.sampler,
            self.scorer,
            self.data.held_out,
            load_scorer(gold, all_finite=False) if gold else None,
            settings,
        )
        self.state = RunState(self.updater.optimization, self.updater.guard, settings.kl.coefficient)

    def iterate(self, tracker: Tracker) -> dict[str, float]:
        """One iteration of PPO; returns its metrics."""
        timer = IterationTimer()
        requests = self.prompts.of_iteration(self.state.next_iteration)
        with timer.rollouts(), gathered_weights(self.backbone):
            sampled = self.sampler.sample(requests, role=POLICY)
            scored = self.scorer.score(sampled, role=POLICY, for_training=True)
        check_sampler_gap(scored, self.backbone)
        usable = scored.usable()
        if usable is None:
            return self._skip_iteration(scored)
        experience = compute_advantages(usable, self.settings, kl_coefficient=self.state.kl_coefficient)
        updates = self.updater.update(experience, iteration=self.state.next_iteration)
        metrics = self._metrics(usable, experience) | updates
        metrics |= scored.left_out()
        self._end_iteration(usable, tracker)
        return named(metrics | timer.metrics())

    def evaluate(self) -> Evaluation:
        """Evaluate the policy on the held-out prompts."""
        # A fresh adapter changes nothing: before the first iteration the policy is the reference.
        return self.evaluator.evaluate(POLICY if self.state.next_iteration else REFERENCE)

    def evaluates_now(self) -> bool:
        """Whether an evaluation is due after the iteration that has just ended."""
        every = self.settings.evaluation.every_iterations
        return self._is_done() or (every > 0 and self.state.next_iteration % every == 0)

    def saves_now(self) -> bool:
        """Whether a checkpoint is due after the iteration that has just ended."""
        every = self.settings.checkpoint_every_iterations
        return self._is_done() or self.state.next_iteration % every == 0

    def _is_done(self) -> bool:
        return self.state.next_iteration == self.settings.num_iterations

    def _skip_iteration(self, scored: Scored) -> dict[str, float]:
        """The metrics of an iteration in which no response is usable: nothing is trained.

        Raises:
            NotFiniteError: several iterations or steps in a row had none.
        """
        self.updater.guard.passes([math.nan])
        self.state.next_iteration += 1
        return named(scored.left_out() | {"num_steps": 0.0})

    def _metrics(self, scored: Scored, experience: Experience) -> dict[str, float]:
        """The iteration's metrics but for those of its updates."""
        return describe(scored, experience, self.settings) | {
            "kl_coefficient": self.state.kl_coefficient,
            "policy_learning_rate": self.updater.optimization.rate,
        }

    def _end_iteration(self, scored: Scored, tracker: Tracker) -> None:
        """Steer β, where it has a target, and count the iteration."""
        kl = self.settings.kl
        if kl.target is not None:
            self.state.kl_coefficient = adapt(
                self.state.kl_coefficient,
                kl=float(scored.kl_B.mean()),
                target=kl.target,
                num_responses=len(scored.rollouts),
                horizon=kl.horizon,
            )
        self.state.next_iteration += 1
        every = self.settings.sample_table_every
        if every and self.state.next_iteration % every == 0:
            _show_rollouts(scored, tracker, step=self.state.next_iteration)


def train(recipe: Recipe, settings: PPOSettings, stage: StageRun) -> None:
    """Train, evaluate and publish; a half-finished stage resumes from its newest checkpoint."""
    ppo = PPO(recipe, settings)
    keeper = Keeper(ppo.state, stage, keep_checkpoints=settings.keep_checkpoints)
    resumed = stage.resuming and keeper.restore()
    ppo.data.counts.print("ppo: prompts")
    stage.drop_replaced()
    resume_step = ppo.state.next_iteration if resumed else None
    with track(recipe, "ppo", stage.folder, resume_step=resume_step) as tracker:
        before = ppo.evaluator.evaluate(REFERENCE)
        check_sampler_gap(before.scored, ppo.backbone)
        if resumed:
            keeper.restore_rng()  # a scorer may have drawn random numbers just now
        else:
            tracker.log(named_held_out(before), step=0)
            keeper.mark()
        with keeper.saving_if_stopped():
            if keeper.evaluation_due:
                catch_up(ppo, keeper, tracker)
            run_iterations(ppo, keeper, tracker)
            with gathered_weights(ppo.backbone):
                finish(ppo, keeper, stage, tracker, before)


def run_iterations(ppo: PPO, keeper: Keeper, tracker: Tracker) -> None:
    """All iterations that are left, with their evaluations and checkpoints."""
    for _ in progress(range(ppo.state.next_iteration, ppo.settings.num_iterations), desc="ppo"):
        metrics = ppo.iterate(tracker)
        is_best = False
        if ppo.evaluates_now():
            evaluation = evaluate_iteration(ppo, keeper, tracker, metrics)
            metrics |= named_held_out(evaluation)
            is_best = keeper.is_best(evaluation.quality)
        tracker.log(metrics, step=ppo.state.next_iteration)
        keeper.mark()
        if is_best or ppo.saves_now():
            keeper.save()
        preemption.check()


def evaluate_iteration(ppo: PPO, keeper: Keeper, tracker: Tracker, metrics: dict[str, float]) -> Evaluation:
    """Evaluate after an iteration, whose metrics are not logged yet.

    Where that fails (the gold scorer is the user's code), the iteration stays finished all the same.
    """
    try:
        return ppo.evaluate()
    except UserError:  # it is raised on all ranks, so that all of them may mark the boundary
        tracker.log(metrics, step=ppo.state.next_iteration)
        keeper.mark(evaluation_due=True)
        raise


def catch_up(ppo: PPO, keeper: Keeper, tracker: Tracker) -> None:
    """Make the evaluation that failed after the last iteration."""
    evaluation = ppo.evaluate()
    keeper.is_best(evaluation.quality)
    tracker.log(named_held_out(evaluation), step=ppo.state.next_iteration)
    keeper.mark()


def finish(ppo: PPO, keeper: Keeper, stage: StageRun, tracker: Tracker, before: Evaluation) -> None:
    """Compare with before and with best-of-n, publish the policy, and say what came out."""
    settings = ppo.settings
    last_iteration = ppo.state.next_iteration
    published = keeper.choose_best() if settings.publish == "best" else last_iteration
    after = ppo.evaluate()
    best = ppo.evaluator.best_of_n()
    metrics = summary(before, after, best, settings)
    columns, rows = side_by_side(before, after, settings.evaluation.num_table_rows)
    tracker.table("ppo/before_after", columns, rows, step=last_iteration)
    results = report(before, after, best)
    if settings.publish == "best":
        metrics["published_iteration"] = float(published)
        results.append(("published", f"the policy of iteration {published}"))
    results.append(("policy adapter", str(stage.folder / "model")))
    manifest = stage.publish(
        write_model=lambda folder: write_policy(ppo.backbone, folder),
        metrics=metrics,
        counts=ppo.data.counts.accounts(),
        wandb_url=tracker.url,
    )
    if settings.export_merged:
        drawn = Drawn(after.scored.rollouts, after.scored.logprobs_BT)
        again = stage.next_command("ppo")
        gap = world().run_on_rank0(lambda: merge_policy(ppo.backbone, drawn, settings, manifest, again=again))
        metrics |= gap
        if gap:
            results.append(("merged, from the policy", f"{gap['merged_gap_nats_mean']:.1e} nats per token"))
            results.append(("merged model", str(stage.folder / MERGED)))
    tracker.finish(named(metrics) | {"artifact_sha256": manifest.artifact_sha256})
    print_result("ppo", results, next_command=stage.next_command("chat"))


def _show_rollouts(scored: Scored, tracker: Tracker, *, step: int) -> None:
    """A table of some of an iteration's rollouts."""
    rows: list[list[str | float]] = []
    for i in range(min(_NUM_SHOWN, len(scored.rollouts))):
        num_tokens = int(scored.rollouts.response_lengths_B[i])
        reward, kl = float(scored.scores_B[i]), float(scored.kl_B[i])
        rows.append([scored.prompts[i], scored.responses[i], reward, kl, num_tokens])
    tracker.table("ppo/rollouts", ["prompt", "response", "reward", "kl_nats", "tokens"], rows, step=step)

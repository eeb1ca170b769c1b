"""An iteration's optimizer steps on its experience."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.experience import Experience, MicroBatch
from ppo.kl import k3
from ppo.losses import policy_loss, value_loss
from ppo.models import POLICY, VALUE
from ppo.passes import response_logprobs, response_values
from rlhf.model.backbone import Backbone
from rlhf.model.batching import split_by_cost, token_batches
from rlhf.parallel.world import world
from rlhf.sampling.rollouts import Rollouts
from rlhf.training.nonfinite import FiniteGuard
from rlhf.training.start import optimize

# Shapes: N real response tokens of a micro-batch.


@dataclass
class StepSums:
    """Sums over a minibatch's tokens, to be divided by their number."""

    num_tokens: int
    """Real response tokens of the whole minibatch, on all ranks."""
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, totals: dict[str, Tensor], weight: float) -> None:
        """Add a micro-batch's sums."""
        for name, total in totals.items():
            self.sums[name] += weight * float(total.detach())

    def means(self) -> dict[str, float]:
        return {name: value / self.num_tokens for name, value in self.sums.items()}


class Updater:
    """Policy and value adapters, their optimizer, and PPO's passes over an experience."""

    def __init__(self, backbone: Backbone, settings: PPOSettings, *, seed: int) -> None:
        self.backbone, self.settings, self.seed = backbone, settings, seed
        backbone.set_trainable([POLICY, VALUE])
        policy, value = (
            {f"{role}.{key}": parameter for key, parameter in backbone.role_parameters(role).items()}
            for role in (POLICY, VALUE)
        )
        self.named = policy | value
        self.optimization = optimize(
            backbone,
            [(policy, settings.policy_learning_rate), (value, settings.value_learning_rate)],
            max_grad_norm=settings.max_grad_norm,
            eps=1e-5,
        )
        self.guard = FiniteGuard("ppo", "Lower ppo.policy_learning_rate, or raise ppo.kl.coefficient.")

    def update(self, experience: Experience, *, iteration: int) -> dict[str, float]:
        """`num_epochs` passes, each a fresh shuffle cut into `num_minibatches` optimizer steps.

        Returns the means over the steps that were taken, the metrics of the first step under `first_*`,
        and `num_steps`.

        Raises:
            NotFiniteError: several steps in a row were not finite.
        """
        self._set_learning_rates(iteration)
        num_rollouts = len(experience.rollouts)
        num_minibatches = min(self.settings.num_minibatches, num_rollouts)
        steps: list[dict[str, float]] = []
        for epoch in range(self.settings.num_epochs):
            order = np.random.default_rng([self.seed, 1 + iteration, epoch]).permutation(num_rollouts)
            for rows in np.array_split(order, num_minibatches):
                steps.append(self.step(experience, rows.tolist(), iteration=iteration))
                if self._moved_too_far(steps[-1]):
                    return _summary(steps, stopped_early=True)
        return _summary(steps, stopped_early=False)

    def step(self, experience: Experience, rows: Sequence[int], *, iteration: int) -> dict[str, float]:
        """One optimizer step on the rollouts `rows`; its metrics are means over their tokens."""
        train_policy = iteration >= self.settings.value_warmup_iterations
        sums = self.accumulate(experience, rows, train_policy=train_policy)
        metrics = sums.means()
        metrics["gradient_norm"] = self.optimization.step(metrics.values())
        return metrics | {"skipped": float(not self.guard.passes(metrics.values()))}

    def accumulate(
        self, experience: Experience, rows: Sequence[int], *, train_policy: bool = True
    ) -> StepSums:
        """Add the gradients of one minibatch, each rank those of its part, micro-batch by micro-batch."""
        sums = StepSums(int(experience.rollouts.response_mask_BT[list(rows)].sum()))
        for batch in _micro_batches_of_this_rank(experience, rows, self.settings.micro_batch_tokens):
            if train_policy:
                self._policy_backward(batch, sums)
            self._value_backward(batch, sums, train_policy=train_policy)
        sums.sums = world().sum(sums.sums)
        return sums

    def _policy_backward(self, batch: MicroBatch, sums: StepSums) -> None:
        logprobs_N = response_logprobs(
            self.backbone, batch.rollouts, role=POLICY, temperature=self.settings.sampling.temperature
        )
        loss, clipped_N = policy_loss(
            logprobs_N,
            batch.old_logprobs_N,
            batch.advantages_N,
            clip_range=self.settings.clip_range,
            num_tokens=sums.num_tokens,
        )
        self.optimization.backward(batch.weight * loss)
        with torch.no_grad():
            totals = {
                "policy_loss": loss * sums.num_tokens,
                "ratio": (logprobs_N - batch.old_logprobs_N).exp().sum(),
                "approx_kl": k3(batch.old_logprobs_N, logprobs_N).sum(),
                "policy_clip_fraction": clipped_N.sum(),
            }
            sums.add(totals, batch.weight)

    def _value_backward(self, batch: MicroBatch, sums: StepSums, *, train_policy: bool) -> None:
        # A joint value stands on the policy's adapter, which must not move while the value warms up.
        head_only = self.settings.value == "joint" and not train_policy
        values_N = response_values(self.backbone, batch.rollouts, self.settings, head_only=head_only)
        loss, clipped_N = value_loss(
            values_N,
            batch.old_values_N,
            batch.returns_N,
            clip_range=self.settings.value_clip_range,
            num_tokens=sums.num_tokens,
        )
        self.optimization.backward(batch.weight * self.settings.value_coefficient * loss)
        totals = {"value_loss": loss * sums.num_tokens, "value_clip_fraction": clipped_N.sum()}
        sums.add(totals, batch.weight)

    def _set_learning_rates(self, iteration: int) -> None:
        left = 1.0
        if self.settings.schedule == "linear":
            left = 1 - iteration / self.settings.num_iterations
        rates = (self.settings.policy_learning_rate, self.settings.value_learning_rate)
        self.optimization.set_rates([rate * left for rate in rates])

    def _moved_too_far(self, metrics: dict[str, float]) -> bool:
        limit = self.settings.max_approx_kl
        return limit is not None and metrics.get("approx_kl", 0.0) > limit


def _micro_batches_of_this_rank(
    experience: Experience, rows: Sequence[int], max_tokens: int
) -> Iterator[MicroBatch]:
    """The part of a minibatch that this rank trains on, made one micro-batch at a time."""
    rollouts = experience.rollouts
    own_rows = _rows_of_this_rank(rollouts, rows)
    parts: list[list[int] | None] = []
    for places in token_batches([rollouts.lengths[row] for row in own_rows], max_tokens):
        parts.append([own_rows[place] for place in places])
    # Under ZeRO-3 a pass is a collective: a rank with fewer micro-batches runs spare ones.
    for part in world().pad_to_equal(parts, lambda: None):
        yield experience.spare() if part is None else experience.micro_batch(part)


def _rows_of_this_rank(rollouts: Rollouts, rows: Sequence[int]) -> list[int]:
    """Those of `rows` that this rank trains on: every rank gets some of like length in all."""
    if rollouts.trunk is not None:
        # The states of the frozen trunk are too large to move, so each rank trains on those that it has.
        return [row for row in rows if rollouts.trunk.places[row] is not None]
    parts = split_by_cost([rollouts.lengths[row] for row in rows], world().size)
    return [rows[place] for place in parts[world().rank]]


def _summary(steps: list[dict[str, float]], *, stopped_early: bool) -> dict[str, float]:
    """Means over the steps that were taken, and what the first of them was like: before any update."""
    good = [step for step in steps if not step["skipped"]]
    names = sorted({name for step in good for name in step} - {"skipped"})
    summary = {name: float(np.mean([step[name] for step in good if name in step])) for name in names}
    for name in ("approx_kl", "policy_clip_fraction"):
        if good and name in good[0]:
            summary[f"first_{name}"] = good[0][name]
    return summary | {
        "num_steps": float(len(good)),
        "num_skipped_steps": float(len(steps) - len(good)),
        "stopped_early": float(stopped_early),
    }

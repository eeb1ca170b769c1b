"""An iteration's optimizer steps on its experience."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.kl import k3
from ppo.losses import policy_loss, value_loss
from ppo.models import POLICY, VALUE
from ppo.rollout import Experience, response_hidden, response_logprobs, value_role
from rlhf.model.backbone import Backbone
from rlhf.parallel.world import world
from rlhf.sampling.rollouts import Rollouts
from rlhf.training.nonfinite import FiniteGuard
from rlhf.training.start import optimize

# Shapes: B rollouts, T response tokens (right-padded), N real response tokens of a micro-batch.


@dataclass
class StepSums:
    """Sums over a minibatch's tokens, to be divided by their number."""

    num_tokens: int
    weight: float = 1.0
    """0 while a spare micro-batch runs, which only keeps the ranks' passes alike."""
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] += self.weight * float(value.detach())

    def means(self) -> dict[str, float]:
        return {name: value / self.num_tokens for name, value in self.sums.items()}


class Updater:
    """Policy and value adapters, their optimizer, and PPO's passes over an experience."""

    def __init__(self, backbone: Backbone, settings: PPOSettings, *, seed: int) -> None:
        self.backbone, self.settings, self.seed = backbone, settings, seed
        backbone.set_trainable([POLICY, VALUE])
        self.named = {
            f"{role}.{k}": p for role in (POLICY, VALUE) for k, p in backbone.role_parameters(role).items()
        }
        self.optimization = optimize(
            backbone,
            [
                ({k: p for k, p in self.named.items() if k.startswith(f"{role}.")}, rate)
                for role, rate in (
                    (POLICY, settings.policy_learning_rate),
                    (VALUE, settings.value_learning_rate),
                )
            ],
            max_grad_norm=settings.max_grad_norm,
            eps=1e-5,
        )
        self.guard = FiniteGuard("ppo", "Lower ppo.policy_learning_rate, or raise ppo.kl.coefficient.")

    def update(self, experience: Experience, *, iteration: int) -> dict[str, float]:
        """`num_epochs` passes, each a fresh shuffle cut into `num_minibatches` optimizer steps.

        Returns the means over the steps that were taken, the figures of the first step under `first_*`,
        and `num_steps`.

        Raises:
            NotFiniteError: several steps in a row were not finite.
        """
        self._set_learning_rates(iteration)
        steps: list[dict[str, float]] = []
        for epoch in range(self.settings.num_epochs):
            order = np.random.default_rng([self.seed, 1 + iteration, epoch]).permutation(
                len(experience.rollouts)
            )
            num_minibatches = min(self.settings.num_minibatches, len(order))
            for rows in torch.from_numpy(order).tensor_split(num_minibatches):
                steps.append(self.step(experience, rows, iteration=iteration))
                if self._moved_too_far(steps[-1]):
                    return _summary(steps, stopped_early=True)
        return _summary(steps, stopped_early=False)

    def step(self, experience: Experience, rows: Tensor, *, iteration: int) -> dict[str, float]:
        """One optimizer step on the rollouts `rows`; its figures are means over their tokens."""
        sums = self.accumulate(
            experience, rows, train_policy=iteration >= self.settings.value_warmup_iterations
        )
        metrics = sums.means()
        metrics["gradient_norm"] = self.optimization.step(metrics.values())
        return metrics | {"skipped": float(not self.guard.passes(metrics.values()))}

    def accumulate(self, experience: Experience, rows: Tensor, *, train_policy: bool = True) -> StepSums:
        """Add the gradients of one minibatch, each rank those of its part, micro-batch by micro-batch."""
        mine, minibatch = experience.cut(rows)
        parts: list[tuple[Tensor | None, Rollouts]] = []
        if minibatch is not None:
            batches = minibatch.micro_batches(self.settings.micro_batch_tokens)
            parts = [(mine[part_rows], part) for part_rows, part in batches]
        sums = StepSums(int(experience.rollouts.response_mask_BT[rows].sum()))
        # A spare part has no rows of the experience: it counts for nothing.
        for index, part in world().pad_to_equal(parts, lambda: (None, experience.own.select([0]))):
            sums.weight = 0.0 if index is None else 1.0
            old_logprobs, old_values, advantages, returns = experience.targets(index, part)
            if train_policy:
                self._policy_backward(part, old_logprobs, advantages, sums)
            self._value_backward(part, old_values, returns, sums, detach_trunk=not train_policy)
        sums.sums = world().sum(sums.sums)
        return sums

    def _policy_backward(self, part: Rollouts, old_N: Tensor, advantages_N: Tensor, sums: StepSums) -> None:
        temperature = self.settings.sampling.temperature
        with self.backbone.role(POLICY):
            logprobs_N = self.optimization.forward(
                lambda: response_logprobs(self.backbone, part, temperature)
            )
        loss, clipped_N = policy_loss(
            logprobs_N, old_N, advantages_N, clip_range=self.settings.clip_range, num_tokens=sums.num_tokens
        )
        self.optimization.backward(sums.weight * loss)
        with torch.no_grad():
            sums.add(
                {
                    "policy_loss": loss * sums.num_tokens,
                    "ratio": (logprobs_N - old_N).exp().sum(),
                    "approx_kl": k3(old_N, logprobs_N).sum(),
                    "policy_clip_fraction": clipped_N.sum(),
                }
            )

    def _value_backward(
        self, part: Rollouts, old_N: Tensor, returns_N: Tensor, sums: StepSums, *, detach_trunk: bool
    ) -> None:
        joint = self.settings.value == "joint"

        def values() -> Tensor:
            with (
                self.backbone.role(value_role(self.settings)),
                torch.set_grad_enabled(not (joint and detach_trunk)),
            ):
                hidden_NH = response_hidden(self.backbone, part)
            return self.backbone.scalar(VALUE, hidden_NH)

        values_N = self.optimization.forward(values)
        loss, clipped_N = value_loss(
            values_N, old_N, returns_N, clip_range=self.settings.value_clip_range, num_tokens=sums.num_tokens
        )
        self.optimization.backward(sums.weight * self.settings.value_coefficient * loss)
        sums.add({"value_loss": loss * sums.num_tokens, "value_clip_fraction": clipped_N.sum()})

    def _set_learning_rates(self, iteration: int) -> None:
        left = 1 - iteration / self.settings.num_iterations if self.settings.schedule == "linear" else 1.0
        rates = (self.settings.policy_learning_rate, self.settings.value_learning_rate)
        self.optimization.set_rates([rate * left for rate in rates])

    def _moved_too_far(self, metrics: dict[str, float]) -> bool:
        limit = self.settings.max_approx_kl
        return limit is not None and metrics.get("approx_kl", 0.0) > limit


def _summary(steps: list[dict[str, float]], *, stopped_early: bool) -> dict[str, float]:
    good = [step for step in steps if not step["skipped"]]
    names = sorted({name for step in good for name in step} - {"skipped"})
    summary = {name: float(np.mean([step[name] for step in good if name in step])) for name in names}
    summary |= {
        f"first_{name}": steps[0][name] for name in ("approx_kl", "policy_clip_fraction") if name in steps[0]
    }
    return summary | {
        "num_steps": float(len(good)),
        "num_skipped_steps": float(len(steps) - len(good)),
        "stopped_early": float(stopped_early),
    }

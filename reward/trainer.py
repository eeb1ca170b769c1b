"""The reward adapter and head in training: groups → scores → ranking loss → step."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reward.config import RewardSettings
from reward.data import Group, micro_batches
from reward.evaluate import Values
from reward.loss import Pairs, collate, ranking_loss
from reward.model import ROLE, raw_scores, score_sharded
from rlhf.model.adapters import init_head
from rlhf.model.backbone import Backbone
from rlhf.model.batching import TokenBatch, split_by_cost
from rlhf.parallel.world import world
from rlhf.runs import checkpoints
from rlhf.runs.rank_checkpoints import all_rng_tensors, newest_checkpoint, restore_own_rng
from rlhf.training.nonfinite import FiniteGuard
from rlhf.training.start import optimize

# Shapes: N completions of a micro-batch, L tokens of a padded sequence, P pairs.


class Trainer:
    """The reward adapter and head in training: optimizer, schedule, and what one step does."""

    def __init__(
        self, backbone: Backbone, groups: Sequence[Group], settings: RewardSettings, *, seed: int
    ) -> None:
        self.backbone, self.groups, self.settings, self.seed = backbone, groups, settings, seed
        backbone.add_adapter(ROLE, settings.lora, seed=seed)
        init_head(backbone.add_head(ROLE, bias=False), seed=seed)
        backbone.set_trainable([ROLE])
        if settings.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        self.named = backbone.role_parameters(ROLE)
        self._peaks = (settings.learning_rate, settings.head_learning_rate)
        adapter = {name: p for name, p in self.named.items() if not name.startswith("head.")}
        head = {name: p for name, p in self.named.items() if name.startswith("head.")}
        self.optimization = optimize(
            backbone,
            [(adapter, settings.learning_rate), (head, settings.head_learning_rate)],
            max_grad_norm=settings.max_grad_norm,
            weight_decay=settings.weight_decay,
        )
        self.steps_per_epoch = math.ceil(len(groups) / settings.batch_size)
        self.num_steps = settings.num_epochs * self.steps_per_epoch
        self.next_step = 0
        self.guard = FiniteGuard("reward", "Lower reward.learning_rate, or use model.precision=fp32.")
        self.best = checkpoints.Best()
        self.window: dict[str, list[float]] = {}
        """Metrics of the steps since the last line of `metrics.jsonl`."""

    def batch(self, step: int) -> list[Group]:
        """The groups of a step: a fresh shuffle for every epoch, a function of seed and epoch alone."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
        rows = order[place * self.settings.batch_size : (place + 1) * self.settings.batch_size]
        return [self.groups[row] for row in rows]

    def step(self) -> None:
        """Take the next optimizer step.

        Raises:
            NotFiniteError: several steps in a row were not finite; the state is that before the last of them.
        """
        factor = self.learning_rate_factor(self.next_step)
        self.optimization.set_rates([peak * factor for peak in self._peaks])
        metrics = self.accumulate(self.batch(self.next_step))
        metrics["gradient_norm"] = self.optimization.step(metrics.values())
        passes = self.guard.passes(metrics.values())
        self.next_step += 1
        if not passes:
            return
        for name, value in metrics.items():
            self.window.setdefault(name, []).append(value)

    def accumulate(self, groups: Sequence[Group]) -> dict[str, float]:
        """Add the gradients of one step, each rank those of its groups, micro-batch by micro-batch.

        Into how many parts the groups are divided changes nothing beyond rounding. Returns the step's loss
        and, if any pair has a better completion, accuracy and mean margin.
        """
        loss_sum = 0.0
        margins = [torch.zeros(0)]
        for batch, weight in self._micro_batches(groups):
            scores_N, pairs = self.scores(batch, num_groups=len(groups))
            loss = ranking_loss(scores_N, pairs, tie_margin=self.settings.tie_margin or 0.0)
            self.optimization.backward(weight * loss)
            if weight:
                loss_sum += float(loss.detach())
                margins.append(_ordered_margins(scores_N.detach(), pairs))
        metrics = world().sum({"loss_nats": loss_sum})
        margins_P = torch.cat(world().gather(torch.cat(margins)))
        if len(margins_P):
            right_P = (margins_P > 0).float() + 0.5 * (margins_P == 0).float()
            metrics |= {"accuracy": float(right_P.mean()), "margin_mean": float(margins_P.mean())}
        return metrics

    def _micro_batches(self, groups: Sequence[Group]) -> list[tuple[list[Group], float]]:
        """This rank's part of a step in micro-batches, each with its weight in the loss.

        The weight is 0 for a spare one, which only keeps the ranks' passes alike: see `World.pad_to_equal`.
        """
        ours = world()
        costs = [sum(len(ids) for ids in group.sequences) for group in groups]
        mine = [groups[place] for place in split_by_cost(costs, ours.size)[ours.rank]]
        batches = [(batch, 1.0) for batch in micro_batches(mine, self.settings.micro_batch_tokens)]
        return ours.pad_to_equal(batches, lambda: ([groups[0]], 0.0))

    def scores(self, groups: Sequence[Group], *, num_groups: int) -> tuple[Tensor, Pairs]:
        """Raw scores (N,) of every completion of `groups`, and their pairs.

        The one place that turns groups into model inputs: each completion carries its prompt along.
        """
        device = self.backbone.device
        sequences = [ids for group in groups for ids in group.sequences]
        batch = TokenBatch.of(sequences, self.backbone.pad_id, device)
        pairs = collate(
            [group.pairs for group in groups],
            [len(group) for group in groups],
            num_groups=num_groups,
            device=device,
        )
        return raw_scores(self.backbone, batch), pairs

    def score_groups(self, groups: Sequence[Group]) -> Values:
        """Raw scores of every completion of every group."""
        sequences = [ids for group in groups for ids in group.sequences]
        scores = score_sharded(self.backbone, sequences, max_tokens=self.settings.micro_batch_tokens)
        parts = scores.split([len(group) for group in groups])
        return [part.tolist() for part in parts]

    def learning_rate_factor(self, step: int) -> float:
        """Share of the peak learning rates at a step that counts from 0."""
        warmup = math.ceil(self.settings.warmup_fraction * self.num_steps)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / (self.num_steps - warmup)
        falls = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
        return falls[self.settings.schedule]

    def take_window(self) -> dict[str, float]:
        """Mean metrics of the steps since the last call."""
        metrics = {name: sum(values) / len(values) for name, values in self.window.items()}
        self.window = {}
        return metrics | {
            "learning_rate": self.optimization.rate,
            "skipped_steps": float(self.guard.skipped_steps),
        }

    def save(self, folder: Path) -> None:
        """Write a complete checkpoint."""
        tensors = self.optimization.tensors() | all_rng_tensors()  # of all ranks, so all of them are here
        state = {**self.guard.state(), "window": self.window, "best": asdict(self.best)}
        world().run_on_rank0(
            lambda: checkpoints.save(
                folder,
                self.next_step,
                tensors,
                state,
                keep=self.settings.keep_checkpoints,
                best=self.best.step,
            )
        )

    def restore(self, folder: Path) -> bool:
        """Resume from the newest good checkpoint, if there is one."""
        found = newest_checkpoint(folder)
        if found is None:
            return False
        self.optimization.restore(found.tensors)
        restore_own_rng(found.tensors)
        self.guard.restore(found.state)
        self.window, self.best = found.state["window"], checkpoints.Best(**found.state["best"])
        self.next_step = found.step
        return True


def _ordered_margins(scores_N: Tensor, pairs: Pairs) -> Tensor:
    """Margins of the pairs that have a better one, better less worse."""
    sign_P = torch.where(pairs.tie_P, 0.0, torch.sign(pairs.target_P - 0.5))
    margins_P: Tensor = (pairs.margins(scores_N) * sign_P)[sign_P != 0]
    return margins_P.cpu()

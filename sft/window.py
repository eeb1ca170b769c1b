"""What a line of the training metrics is about: the optimizer steps since the line before."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf.parallel.world import world

_LOSS = "window.loss"
_MEANS = {"mean_token_accuracy": "sft/token_accuracy", "entropy": "sft/entropy_nats_per_token"}
"""What TRL reports for each micro-batch, and the key under which its mean is logged."""
_TOKENS = "num_tokens"


class Window:
    """Sums over the steps since the last line of the metrics; a checkpoint keeps them.

    What the micro-batches of a step bring in (`add_loss`, `add_report`) counts when the step is taken
    (`take_step`), and is forgotten when it is not (`leave_out_step`).
    """

    def __init__(self, device: torch.device) -> None:
        self.num_steps = 0
        self.tokens_seen = 0
        """Since the beginning of training: this one does not begin again with each line."""
        self.gradient_norm = 0.0
        """Of the last step that was taken."""
        self._loss = torch.zeros((), device=device)
        """This process's sum. It stays on its device: reading it would wait for every micro-batch."""
        self._means: dict[str, list[float]] = {}
        self._tokens_before = 0
        self._step_losses: list[Tensor] = []
        self._step_reports: list[Mapping[str, float]] = []

    def add_loss(self, loss: Tensor) -> None:
        """Add a micro-batch's share of its step's loss."""
        self._step_losses.append(loss)

    def add_report(self, report: Mapping[str, float]) -> None:
        """Add what TRL reports of a micro-batch; its tokens are counted since this process began."""
        self._step_reports.append(report)
        self.tokens_seen = self._tokens_before + int(report[_TOKENS])

    def take_step(self, gradient_norm: float) -> None:
        """Count the step at hand, which is taken."""
        for loss in self._step_losses:
            self._loss += loss
        for report in self._step_reports:
            for name in _MEANS.keys() & report.keys():
                # An entropy may be not a number where logits are infinite, though loss and gradients are.
                if math.isfinite(report[name]):
                    self._means.setdefault(name, []).append(report[name])
        self.num_steps += 1
        self.gradient_norm = gradient_norm
        self._forget_step()

    def leave_out_step(self) -> None:
        """Forget the step at hand, but for its tokens, which have been seen."""
        self._forget_step()

    def _forget_step(self) -> None:
        self._step_losses = []
        self._step_reports = []

    def close(self) -> dict[str, float]:
        """The metrics of the steps taken, of which there must be some; then a new window begins.

        All ranks must call it: the loss is the mean of theirs.
        """
        losses = torch.stack(world().gather(self._loss.cpu()))
        # On the device of the loss: the last bit of a mean of many depends on where it is taken.
        loss = losses.to(self._loss.device).mean().item()
        metrics = {"sft/loss_nats_per_token": loss / self.num_steps}
        for name, key in _MEANS.items():
            if name in self._means:
                metrics[key] = sum(self._means[name]) / len(self._means[name])
        metrics["sft/gradient_norm"] = self.gradient_norm
        metrics["sft/tokens_seen"] = float(self.tokens_seen)
        self._loss = torch.zeros_like(self._loss)
        self._means = {}
        self.num_steps = 0
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """The part of a checkpoint that is tensors. All ranks must call it."""
        return {_LOSS: torch.stack(world().gather(self._loss.cpu()))}

    def state(self, step: int) -> dict[str, Any]:
        """The part of a checkpoint after `step` steps that is JSON."""
        return {
            "last_logged_step": step - self.num_steps,
            "window": dict(self._means),
            "tokens_seen": self.tokens_seen,
            "gradient_norm": self.gradient_norm,
        }

    def restore(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `state` gave after `step` steps, on as many processes or on others."""
        sums = tensors[_LOSS]  # every rank's own; their mean is what is logged
        own = sums[world().rank] if len(sums) == world().size else sums.mean()
        self._loss = own.to(self._loss.device, copy=True)
        self._means = {name: list(state["window"][name]) for name in _MEANS if name in state["window"]}
        self.num_steps = step - state["last_logged_step"]
        self._tokens_before = state["tokens_seen"]
        self.tokens_seen = state["tokens_seen"]
        self.gradient_norm = state["gradient_norm"]

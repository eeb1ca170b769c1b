"""TRL's `SFTTrainer` with checkpoints of our own: written by `rlhf.checkpoints`, restored to the bit.

transformers' own checkpoints hold pickles, are tied to the number of processes, and leave out what has been
summed up since the last line of the metrics. Here the hooks that write and read them are replaced.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer

from rlhf import checkpoints
from rlhf.checkpoints import Best, Checkpoint
from rlhf.guard import FiniteGuard

_LOSS = "window.loss"


class ResumableTrainer(SFTTrainer):
    """`SFTTrainer` that goes on from checkpoints of ours, and leaves out steps that are not finite."""

    folder: Path
    keep_checkpoints: int
    guard: FiniteGuard
    best: Best
    _found: Checkpoint | None = None
    _gradient_norm: float = 0.0
    _before_step: tuple[Tensor, dict[str, int]]

    def keep_in(self, folder: Path, *, keep: int) -> None:
        """Where checkpoints go, and how many of the newest stay there beside the best."""
        self.folder, self.keep_checkpoints = folder, keep
        self.guard = FiniteGuard("sft", "Lower sft.learning_rate, or use model.precision=fp32.")
        self.best = Best()

    def go_on_from(self, found: Checkpoint) -> None:
        """Let `train` continue after the checkpoint's step."""
        self._found = found
        self.guard.restore(found.state)
        self.best = Best(**found.state["best"])

    def save(self) -> None:
        """Write the state after the last optimizer step."""
        self._save_checkpoint(self.model, trial=None)

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        model: Any = self.model
        return {name: value for name, value in model.named_parameters() if value.requires_grad}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        del model, trial
        scheduler: Any = self.lr_scheduler
        tensors = {f"weights.{name}": parameter for name, parameter in self.named.items()}
        tensors |= checkpoints.optimizer_tensors(self._plain_optimizer, self.named)
        tensors |= checkpoints.rng_tensors() | {_LOSS: self._tr_loss}
        state = {
            "epoch": self.state.epoch,
            "last_logged_step": self._globalstep_last_logged,
            "window": self._metrics["train"],
            "tokens_seen": self._total_train_tokens,
            "schedule": scheduler.state_dict(),
            "best": asdict(self.best),
            **self.guard.state(),
        }
        step, keep = self.state.global_step, self.keep_checkpoints
        checkpoints.save(self.folder, step, tensors, state, keep=keep, best=self.best.step)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        optimizer: Any = self.optimizer
        return optimizer.optimizer  # type: ignore[no-any-return]  # accelerate has wrapped it

    # What transformers' loop calls when it goes on from a checkpoint, in this order.

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        if self._found is not None:
            kwargs["resume_from_checkpoint"] = str(
                self.folder
            )  # any text: that there is one is all that counts
        return super()._inner_training_loop(*args, **kwargs)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *_: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, None, None)
        if self._found is None:
            return 0, 0
        self.state.global_step, self.state.epoch = self._found.step, self._found.state["epoch"]
        epochs, steps = divmod(self._found.step, num_update_steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, *_: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self._found is not None:
            scheduler: Any = self.lr_scheduler
            scheduler.load_state_dict(self._found.state["schedule"])
            with torch.no_grad():
                for name, parameter in self.named.items():
                    parameter.copy_(self._found.tensors[f"weights.{name}"])
            checkpoints.restore_optimizer(self._plain_optimizer, self.named, self._found.tensors)
        return prepared

    def restore_window(self) -> None:
        """Put back what has been summed up since the last line of the metrics."""
        if self._found is not None:
            state = self._found.state
            self._tr_loss = self._found.tensors[_LOSS].to(self.args.device, copy=True)
            self._globalstep_last_logged = state["last_logged_step"]
            self._metrics["train"].update(state["window"])
            self._total_train_tokens = state["tokens_seen"]

    def _load_rng_state(self, checkpoint: Any) -> None:
        del checkpoint
        if self._found is not None:
            checkpoints.restore_rng(self._found.tensors)

    # Steps that are not finite.

    def remember_window(self) -> None:
        """Before an optimizer step: what its figures will be added to."""
        counts = {name: len(values) for name, values in self._metrics["train"].items()}
        self._before_step = (self._tr_loss.clone(), counts)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._gradient_norm = float(norm)
        return norm

    def skip_unless_finite(self) -> None:
        """Leave the step out, figures and all, if its loss or gradient is not finite.

        Raises:
            NotFiniteError: several steps in a row were not; the state is that before the last of them.
        """
        loss, counts = self._before_step
        figures = (float(self._tr_loss), self._gradient_norm)
        if all(math.isfinite(figure) for figure in figures):
            self.guard.passes(figures)
            return
        self._tr_loss = loss
        for name, values in self._metrics["train"].items():
            del values[counts.get(name, 0) :]
        self._plain_optimizer.zero_grad(set_to_none=True)  # without gradients a step changes nothing
        self.guard.passes(figures)
        self._globalstep_last_logged += 1  # the window has one step less

"""TRL's `SFTTrainer` with checkpoints of our own: written by `rlhf.runs.checkpoints`, restored to the bit.

transformers' own checkpoints hold pickles, are tied to the number of processes, and leave out what has been
summed up since the last line of the metrics. Here the hooks that write and read them are replaced.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer

from rlhf.parallel.world import world
from rlhf.runs import checkpoints
from rlhf.runs.checkpoints import Best, Checkpoint
from rlhf.runs.rank_checkpoints import all_rng_tensors, restore_own_rng
from rlhf.training.nonfinite import FiniteGuard

if TYPE_CHECKING:
    from rlhf.training.deepspeed.trainer import TrainerEngine

_LOSS = "window.loss"


class ResumableTrainer(SFTTrainer):
    """`SFTTrainer` that goes on from checkpoints of ours, and leaves out steps that are not finite."""

    folder: Path
    keep_checkpoints: int
    guard: FiniteGuard
    best: Best
    _found: Checkpoint | None = None
    _engine: "TrainerEngine | None" = None
    _groups: list[list[nn.Parameter]]
    _gradient_norm: float = 0.0
    """Of the last step that was taken."""
    _step_is_finite: bool
    computes_in_bf16 = False
    """Under DeepSpeed, whose own bf16 would change the type of what is trained."""
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
        if self._engine is not None:
            tensors = self._engine.state.tensors()
        else:
            tensors = {f"weights.{name}": parameter for name, parameter in self.named.items()}
            tensors |= checkpoints.optimizer_tensors(self._plain_optimizer, self.named)
        tensors |= all_rng_tensors() | {_LOSS: torch.stack(world().gather(self._tr_loss.cpu()))}
        state = {
            "epoch": self.state.epoch,
            "last_logged_step": self._globalstep_last_logged,
            "window": self._metrics["train"],
            "tokens_seen": self._total_train_tokens,
            "gradient_norm": self._gradient_norm,
            "schedule": scheduler.state_dict(),
            "best": asdict(self.best),
            **self.guard.state(),
        }
        step, keep = self.state.global_step, self.keep_checkpoints
        world().run_on_rank0(
            lambda: checkpoints.save(self.folder, step, tensors, state, keep=keep, best=self.best.step)
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        # DeepSpeed drops groups without parameters, and a checkpoint has the same groups with and without it.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

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
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[no-untyped-call]
        if world().zero:
            self._engine = self._take_engine()
        if self._found is not None:
            scheduler: Any = self.lr_scheduler
            scheduler.load_state_dict(self._found.state["schedule"])
            self._load(self._found)
        return prepared

    def _take_engine(self) -> "TrainerEngine":
        from rlhf.training.deepspeed.trainer import TrainerEngine

        engine = TrainerEngine(self.model_wrapped, self.named, self._groups)
        steps = self.args.gradient_accumulation_steps
        engine.check(accumulation=steps, max_grad_norm=self.args.max_grad_norm)
        if self.computes_in_bf16:
            engine.compute_in_bf16()
        return engine

    def _load(self, found: Checkpoint) -> None:
        if self._engine is not None:
            self._engine.state.restore(found.tensors)
            return
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(found.tensors[f"weights.{name}"])
        checkpoints.restore_optimizer(self._plain_optimizer, self.named, found.tensors)

    def trained_model(self) -> Any:
        """The model after training, free of DeepSpeed; cut over ranks under ZeRO-3."""
        if self._engine is not None:
            self._engine.release()
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def restore_window(self) -> None:
        """Put back what has been summed up since the last line of the metrics."""
        if self._found is not None:
            state = self._found.state
            sums = self._found.tensors[_LOSS]  # every rank's own; their mean is what is logged
            own = sums[world().rank] if len(sums) == world().size else sums.mean()
            self._tr_loss = own.to(self.args.device, copy=True)
            self._globalstep_last_logged = state["last_logged_step"]
            self._metrics["train"].update(state["window"])
            self._total_train_tokens = state["tokens_seen"]
            self._gradient_norm = state["gradient_norm"]

    def _load_rng_state(self, checkpoint: Any) -> None:
        del checkpoint
        if self._found is not None:
            restore_own_rng(self._found.tensors)

    # Steps that are not finite.

    def remember_window(self) -> None:
        """Before an optimizer step: what its figures will be added to."""
        counts = {name: len(values) for name, values in self._metrics["train"].items()}
        self._before_step = (self._tr_loss.clone(), counts)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self._step_is_finite = self._is_finite(norm)
        if self._step_is_finite:
            self._gradient_norm = float(norm)
        return self._gradient_norm

    def skip_unless_finite(self) -> None:
        """Leave the step out, figures and all, if its loss or gradient is not finite.

        Raises:
            NotFiniteError: several steps in a row were not; the state is that before the last of them.
        """
        loss, counts = self._before_step
        if self._step_is_finite:
            self.guard.passes([])
            return
        self._tr_loss = loss
        for name, values in self._metrics["train"].items():
            del values[counts.get(name, 0) :]
        self.guard.passes([math.nan])
        self._globalstep_last_logged += 1  # the window has one step less
        scheduler: Any = self.lr_scheduler
        if self._engine is None:
            self._plain_optimizer.zero_grad(set_to_none=True)  # without gradients a step changes nothing
        else:
            scheduler.step()  # which transformers leaves out, and the learning rate is a function of the step

    def _is_finite(self, norm: Any) -> bool:
        if self._engine is not None:
            return not self._engine.skipped  # then there is no norm
        return math.isfinite(float(self._tr_loss)) and math.isfinite(float(norm))

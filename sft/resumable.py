"""TRL's `SFTTrainer` with our order of examples and our checkpoints, through what it lets a subclass say.

transformers resumes only from folders that it has written itself. They hold pickles, are tied to the number
of processes, and leave out what has been summed up since the last line of the metrics. So training always
begins at step 0 here: steps that a checkpoint has behind it are counted once more, without data and without
a forward pass, and at its step its state is put in place. What follows is what an uninterrupted run does.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trl import SFTTrainer

from rlhf.errors import UserError
from rlhf.parallel.deepspeed.sharded import whole_shape
from rlhf.parallel.world import world
from rlhf.runs import checkpoints
from rlhf.runs.checkpoints import Best, Checkpoint
from rlhf.runs.rank_checkpoints import all_rng_tensors, restore_own_rng
from rlhf.training.nonfinite import FiniteGuard
from sft.order import SeededOrder, fill_up, row_lengths
from sft.window import Window

if TYPE_CHECKING:
    from rlhf.training.deepspeed.trainer import TrainerEngine


class Trainer(SFTTrainer):
    """`SFTTrainer` that resumes from checkpoints of ours, and leaves out steps that are not finite.

    It neither logs nor saves by itself: `sft.steps.StepCallback` does both, at the end of a step.
    """

    def __init__(
        self,
        *,
        folder: Path,
        keep_checkpoints: int,
        max_grad_norm: float,
        computes_in_bf16: bool,
        **of_trl: Any,
    ) -> None:
        super().__init__(**of_trl)
        self.folder = folder
        self.keep_checkpoints = keep_checkpoints
        self.max_grad_norm = max_grad_norm
        self.computes_in_bf16 = computes_in_bf16
        """Under DeepSpeed, whose own bf16 would change the type of what is trained."""
        self.guard = FiniteGuard("sft", "Lower sft.learning_rate, or use model.precision=fp32.")
        self.best = Best()
        self.window = Window(self.args.device)
        self.engine: TrainerEngine | None = None
        self._found: Checkpoint | None = None
        self._groups: list[list[nn.Parameter]] = []
        for parameter in self.named.values():
            parameter.data = parameter.data.float()  # under ZeRO-3 TRL makes adapters in the base's type
        self._arrange_rows()

    def _arrange_rows(self) -> None:
        args = self.args
        assert isinstance(self.train_dataset, Dataset)
        at_a_time = args.train_batch_size * args.world_size
        multiple = at_a_time if args.world_size > 1 else 1
        self.train_dataset, num_dummies = fill_up(self.train_dataset, multiple)
        self.order = SeededOrder(
            row_lengths(self.train_dataset),
            batch_size=at_a_time * args.gradient_accumulation_steps,
            seed=args.seed,
            num_dummies=num_dummies,
        )

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        model: Any = self.model
        return {name: value for name, value in model.named_parameters() if value.requires_grad}

    def trained_model(self) -> Any:
        """The model after training, free of DeepSpeed; sharded over ranks under ZeRO-3."""
        if self.engine is not None:
            self.engine.release()
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    # What transformers' loop asks for.

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]  # rows by number are all that is asked of it
            batch_size=self.args.train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        # DeepSpeed drops groups without parameters, and a checkpoint has the same groups with and without it.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        if self.is_counting:
            return [{}] * num_batches, None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.is_counting:
            # No gradients come of it, and without gradients the optimizer changes nothing.
            return torch.zeros((), device=self.args.device)
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.window.add_loss(loss)
        self.log({})  # TRL adds this micro-batch's means, and `on_log` takes them
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[no-untyped-call]
        # A loss that is not finite may have gradients that are. Times not-a-number they are not, so that the
        # gradients alone, which all ranks share, tell whether a step can be taken. Times 1 changes no bit.
        factor = torch.ones_like(loss).masked_fill(~loss.isfinite(), math.nan)
        return loss * factor

    # Resuming.

    def resume_from(self, found: Checkpoint) -> None:
        """Let `train` continue after the checkpoint's step.

        Raises:
            UserError: it holds a weight of another shape.
        """
        for name, parameter in self.named.items():
            stored = found.tensors.get(f"weights.{name}")
            if stored is not None and stored.shape != whole_shape(parameter):
                # A tokenizer without a pad token now gets one, and the embedding a row: earlier ones did not.
                raise UserError(
                    f"the checkpoint is of another model: `{name}` has the shape {tuple(stored.shape)}, "
                    f"and {tuple(whole_shape(parameter))} here",
                    where=str(self.folder),
                    fix="Begin the stage again: `make sft CLEAN=1` (`--clean`).",
                )
        self._found = found
        self.guard.restore(found.state)
        self.best = Best(**found.state["best"])

    @property
    def is_counting(self) -> bool:
        """Whether the step at hand was taken before the checkpoint that training resumes from."""
        return self._found is not None and self.state.global_step < self._found.step

    def begin(self) -> None:
        """Before the first step: DeepSpeed's engine exists now."""
        if world().zero:
            from rlhf.training.deepspeed.trainer import TrainerEngine

            self.engine = TrainerEngine(self.accelerator, self.named, self._groups)
            self.engine.check(
                accumulation=self.args.gradient_accumulation_steps, max_grad_norm=self.max_grad_norm
            )
            if self.computes_in_bf16:
                self.engine.compute_in_bf16()

    def begin_epoch(self) -> None:
        """Choose the epoch's order, without the rows of steps that were taken before the checkpoint."""
        epoch = int(self.state.epoch or 0)
        found_step = 0 if self._found is None else self._found.step
        # More than the epoch has, in an epoch that is only counted: then none of its rows is asked for.
        self.order.begin_epoch(epoch, steps_done=max(found_step - self.state.global_step, 0))

    def begin_step(self) -> None:
        """Before the micro-batches of a step."""
        found = self._found
        if found is not None and found.step == self.state.global_step and self.order.steps_done:
            # In the middle of an epoch the data loader has just drawn a number for the rest of it, which it
            # had drawn before for the whole. At an epoch's beginning it draws as in an uninterrupted run.
            restore_own_rng(found.tensors)

    def arrive(self) -> bool:
        """At the end of a step: if it is the checkpoint's, put its state in place and return True."""
        found = self._found
        if found is None or found.step != self.state.global_step:
            return False
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(found.state["schedule"])
        if self.engine is not None:
            self.engine.state.restore(found.tensors)
        else:
            with torch.no_grad():
                for name, parameter in self.named.items():
                    parameter.copy_(found.tensors[f"weights.{name}"])
            checkpoints.restore_optimizer(self._plain_optimizer, self.named, found.tensors)
        self.window.restore(found.step, found.tensors, found.state)
        restore_own_rng(found.tensors)
        return True

    def save(self) -> None:
        """Write the state after the last optimizer step. All ranks must call it."""
        scheduler: Any = self.lr_scheduler
        step = self.state.global_step
        if self.engine is not None:
            tensors = self.engine.state.tensors()
        else:
            tensors = {f"weights.{name}": parameter for name, parameter in self.named.items()}
            tensors |= checkpoints.optimizer_tensors(self._plain_optimizer, self.named)
        tensors |= all_rng_tensors() | self.window.tensors()
        state = {
            "epoch": self.state.epoch,
            "schedule": scheduler.state_dict(),
            "best": asdict(self.best),
            **self.window.state(step),
            **self.guard.state(),
        }
        keep = self.keep_checkpoints
        best = self.best.step
        world().run_on_rank0(
            lambda: checkpoints.save(self.folder, step, tensors, state, keep=keep, best=best)
        )

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        optimizer: Any = self.optimizer
        return optimizer.optimizer  # type: ignore[no-any-return]  # accelerate has wrapped it

    # Steps that are not finite.

    def take_or_leave_out_step(self) -> None:
        """Clip the step's gradients; if they are not finite, leave the step out of weights and metrics.

        Raises:
            NotFiniteError: several steps in a row were not; the state is that before the last of them.
        """
        norm = self._clip()
        if norm is not None:
            self.guard.passes([])
            self.window.take_step(norm)
            return
        self.window.leave_out_step()
        self.guard.passes([math.nan])
        if self.engine is None:
            self._plain_optimizer.zero_grad(set_to_none=True)  # without gradients a step changes nothing
        else:
            scheduler: Any = self.lr_scheduler
            scheduler.step()  # which transformers leaves out, and the learning rate is a function of the step

    def _clip(self) -> float | None:
        """The norm that the gradients had before clipping; None: they are not finite."""
        if self.engine is not None:
            # DeepSpeed has clipped, and taken the step or not, at the end of the backward pass.
            return None if self.engine.skipped else self.engine.gradient_norm
        model: Any = self.model
        norm = float(self.accelerator.clip_grad_norm_(model.parameters(), self.max_grad_norm))
        return norm if math.isfinite(norm) else None

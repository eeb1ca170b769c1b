"""What happens around the optimizer steps of training: metrics, evaluations, checkpoints, and the end."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transformers import PrinterCallback, TrainerCallback

from rlhf import preemption
from rlhf.parallel.world import world
from sft.config import SFTSettings
from sft.resumable import Trainer

_HELDOUT_LOSS = "sft/heldout_loss_nats_per_token"


class Log(Protocol):
    """Where metrics go: a `Tracker`."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...


class StepCallback(TrainerCallback):
    """Logs the steps of `trainer`, moves the progress bar, evaluates the held-out loss, and saves.

    `evaluate` maps a model to metrics. Besides those that are due, a checkpoint is written after the best
    evaluation so far, after the last step, and when the process is preempted, which ends the training.
    """

    def __init__(
        self,
        trainer: Trainer,
        tracker: Log,
        settings: SFTSettings,
        *,
        log_every_steps: int,
        advance: Callable[[int], Any],
        evaluate: Callable[[Any], dict[str, float]],
    ) -> None:
        self.trainer = trainer
        self.tracker = tracker
        self.settings = settings
        self.log_every_steps = log_every_steps
        self.advance = advance
        self.evaluate = evaluate
        self.is_stopped = False
        """Whether a preemption has ended the training."""
        self._learning_rate = 0.0
        self._logged_at = time.monotonic()
        self._logged_tokens = 0
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin()
        self._logged_at = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        state.log_history.clear()  # transformers would keep every micro-batch's
        if "train_loss" not in logs:  # that is the summary at the end of training
            self.trainer.window.add_report(logs)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.trainer.is_counting:
            self.trainer.take_or_leave_out_step()

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        self._learning_rate = lr_scheduler.get_last_lr()[0]  # the scheduler has not moved on yet

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.is_counting:
            return
        if trainer.arrive():
            self.advance(state.global_step)
            self._logged_at = time.monotonic()
            self._logged_tokens = trainer.window.tokens_seen
            return
        self.advance(1)
        is_best = self._evaluate(state, kwargs["model"])
        is_line_due = state.global_step % self.log_every_steps == 0
        if is_line_due and trainer.window.num_steps:  # none, if all were left out
            self._log(state)
        if world().any(preemption.requested()):
            self.is_stopped = True
            control.should_training_stop = True
        if self._is_due(state) or is_best or self.is_stopped:
            trainer.save()

    def _evaluate(self, state: Any, model: Any) -> bool:
        """Evaluate, if that is due; returns whether this is the best so far and checkpoints are written."""
        step = state.global_step
        every = self.settings.eval_every_steps
        if not every or step % every or step >= state.max_steps:
            return False
        metrics = self.evaluate(model)
        self.tracker.log(metrics, step=step)
        loss = metrics.get(_HELDOUT_LOSS)
        is_best = loss is not None and self.trainer.best.offer(step, -loss)
        return is_best and bool(self.settings.checkpoint_every_steps)

    def _log(self, state: Any) -> None:
        """Log the steps since the last line."""
        metrics = self.trainer.window.close()
        metrics["sft/learning_rate"] = float(self._learning_rate)
        metrics["sft/epochs"] = float(state.epoch)
        metrics["sft/skipped_steps"] = float(self.trainer.guard.skipped_steps)
        now = time.monotonic()
        tokens = self.trainer.window.tokens_seen
        seconds = max(now - self._logged_at, 1e-9)
        metrics["sft/tokens_per_second"] = (tokens - self._logged_tokens) / seconds
        self._logged_at = now
        self._logged_tokens = tokens
        self.tracker.log(metrics, step=state.global_step)

    def _is_due(self, state: Any) -> bool:
        """Whether the settings ask for a checkpoint after this step."""
        every = self.settings.checkpoint_every_steps
        step = state.global_step
        # After the last step always: evaluation, merging and publishing are still to come, and may fail.
        return step >= state.max_steps or (bool(every) and step % every == 0)

"""Laps of a trainer of TRL: its callback ends one after every step that the trainer counts."""

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from benchmarks.trl.laps import Laps
from benchmarks.trl.snapshots import Snapshots


class TakeLaps(TrainerCallback):
    """Takes laps, and snapshots of the policy between them."""

    def __init__(self, laps: Laps, snapshots: Snapshots | None = None) -> None:
        self._laps = laps
        self._snapshots = snapshots

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._laps.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._laps.lap()
        iteration = len(self._laps.laps)
        if self._snapshots is not None and self._snapshots.is_due(iteration):
            with self._laps.paused():
                policy: PeftModel = kwargs["model"].policy
                policy.save_pretrained(str(self._snapshots.add(iteration)))


def num_trainable(model: nn.Module) -> int:
    """Numbers that an optimizer may change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

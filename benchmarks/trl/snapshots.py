"""The policy's adapter, kept every few iterations for the judge, and read back."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.trl.jobs import Job, Snapshot
from benchmarks.trl.laps import Laps
from ppo.config import PPOSettings
from rlhf.model.backbone import Backbone

_PREFIX = "base_model.model."


class Snapshots:
    """Which iterations are kept, and what they had cost until then."""

    def __init__(self, job: Job, laps: Laps, settings: PPOSettings) -> None:
        self.taken: list[Snapshot] = []
        self._job = job
        self._laps = laps
        self._last_iteration = settings.num_iterations
        self._samples_per_iteration = settings.rollouts_per_iteration

    def is_due(self, iteration: int) -> bool:
        every = self._job.snapshot_every
        return every > 0 and (iteration % every == 0 or iteration == self._last_iteration)

    def add(self, iteration: int) -> Path:
        """Note the iteration that has just ended; returns the folder that its adapter goes into."""
        folder = Path(self._job.output) / f"policy-{iteration:04d}"
        self.taken.append(
            Snapshot(
                iteration=iteration,
                num_samples=iteration * self._samples_per_iteration,
                wall_seconds=sum(lap.wall_seconds for lap in self._laps.laps),
                cpu_seconds=sum(lap.cpu_seconds for lap in self._laps.laps),
                folder=str(folder),
            )
        )
        return folder


def put_on(backbone: Backbone, role: str, folder: Path) -> None:
    """Give the adapter `role` of a backbone the weights of a PEFT folder, whoever wrote it."""
    tensors = load_file(folder / "adapter_model.safetensors")
    given = {key.removeprefix(_PREFIX): value for key, value in tensors.items() if ".lora_" in key}
    wanted = backbone.adapter_parameters(role)
    assert {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in given.items()}, folder
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(given[key])

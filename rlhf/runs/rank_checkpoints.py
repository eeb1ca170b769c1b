"""Checkpoints of a stage on several ranks: the one that all resume from, and every rank's random numbers."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rlhf.errors import UserError
from rlhf.parallel.world import world
from rlhf.runs import checkpoints


def newest_checkpoint(folder: Path) -> checkpoints.Checkpoint | None:
    """The newest whole checkpoint of a stage, the same on all ranks: rank 0 looks which one that is."""
    found: list[checkpoints.Checkpoint | None] = []

    def look() -> int | None:
        found.append(checkpoints.latest(folder))
        return None if found[0] is None else found[0].step

    step = world().run_on_rank0(look)
    if found or step is None:
        return found[0] if found else None
    checkpoint = checkpoints.load(folder, step)
    if checkpoint is None:
        raise UserError(
            f"rank {world().rank} cannot read the checkpoint of step {step} that rank 0 resumes from",
            where=str(folder),
            fix="All ranks must see the same files; start again when they do.",
        )
    return checkpoint


def all_rng_tensors() -> dict[str, Tensor]:
    """The states of every rank's random number generators, for a checkpoint. All ranks call it."""
    states = world().gather(checkpoints.rng_tensors())
    return {f"rank{rank}.{name}": value for rank, own in enumerate(states) for name, value in own.items()}


def restore_own_rng(tensors: Mapping[str, Tensor]) -> None:
    """Put back what `all_rng_tensors` gave; a rank that the checkpoint does not know takes rank 0's."""
    prefix = f"rank{world().rank}."
    if not any(name.startswith(prefix) for name in tensors):
        prefix = "rank0."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    checkpoints.restore_rng(own)

"""Checkpoints of one small tensor for tests: saved, and found again."""

from pathlib import Path

import torch

from rlhf.runs import checkpoints


def folder_of(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}"


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def save(folder: Path, step: int, *, keep: int = 2, size: int = 4) -> None:
    checkpoints.save(folder, step, {"w": torch.full((size,), float(step))}, {"step": step}, keep=keep)


def found_step(folder: Path) -> int | None:
    """The newest whole checkpoint's step, after a look at its content."""
    found = checkpoints.latest(folder)
    if found is None:
        return None
    assert (found.tensors["w"] == found.step).all()
    assert found.state == {"step": found.step}
    return found.step

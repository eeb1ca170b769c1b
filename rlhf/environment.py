"""What make, and launchers such as torchrun and accelerate, say through environment variables."""

import os


def is_launched() -> bool:
    """Whether a launcher started this process, alone or as one of several."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def has_ranks() -> bool:
    """Whether this process is one of several that were launched together."""
    return is_launched() and os.environ["WORLD_SIZE"] != "1"


def uses_deepspeed() -> bool:
    """Whether accelerate's launcher started this process to work with DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def goals() -> list[str]:
    """The goals that make was given, in their order; none where no make started this process."""
    return os.environ.get("TRIPTYCH_GOALS", "").split()


def is_rank0() -> bool:
    """Whether this process writes files and prints: alone, or as rank 0 of several."""
    return not has_ranks() or os.environ["RANK"] == "0"

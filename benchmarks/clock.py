"""Wall-clock time of work that a device does by itself."""

import time
from collections.abc import Callable

import torch


def clock(device: str) -> Callable[[], float]:
    """Wall-clock seconds, read once the device has done all that it was given."""
    if not device.startswith("cuda"):
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now

"""Peak memory of the racer's own process, over what importing had cost.

On Linux the kernel keeps the high-water mark of a process's resident memory (VmHWM), and writing 5 to
`/proc/self/clear_refs` sets it back to what is resident now. Where that cannot be had, the mark of getrusage
serves, which cannot be set back: imports leave it about where they leave resident memory.
"""

import gc
import resource
import sys
from pathlib import Path

from rlhf.runs.manifest import JsonFile

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Memory(JsonFile):
    """Peak resident memory of a racer, and what importing its libraries had already cost."""

    imported_bytes: int
    peak_bytes: int
    source: str
    device_peak_bytes: int | None = None
    """Peak of the CUDA allocator, which importing leaves at 0."""

    @property
    def increment_bytes(self) -> int:
        return self.peak_bytes - self.imported_bytes


class PeakMemory:
    """Made after the last import and before the first tensor."""

    def __init__(self, device: str = "cpu") -> None:
        gc.collect()
        self._device = device
        self._source = "VmHWM, set back after importing" if _set_back() else "ru_maxrss"
        self._imported = status_bytes(_STATUS.read_text(), "VmRSS") if self._is_exact else _usage_bytes()
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats()

    @property
    def _is_exact(self) -> bool:
        return self._source != "ru_maxrss"

    def take(self) -> Memory:
        """The peak until now."""
        peak = status_bytes(_STATUS.read_text(), "VmHWM") if self._is_exact else _usage_bytes()
        device_peak = None
        if self._device.startswith("cuda"):
            import torch

            device_peak = int(torch.cuda.max_memory_allocated())
        return Memory(
            imported_bytes=self._imported, peak_bytes=peak, source=self._source, device_peak_bytes=device_peak
        )


def status_bytes(status: str, key: str) -> int:
    """A field of `/proc/<pid>/status` that the kernel writes in kB."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            number, unit = value.split()
            assert unit == "kB", unit
            return int(number) * 1024
    raise KeyError(key)


def _set_back() -> bool:
    try:
        _CLEAR.write_text("5")
        status_bytes(_STATUS.read_text(), "VmHWM")
    except (OSError, KeyError):
        return False
    return True


def _usage_bytes() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

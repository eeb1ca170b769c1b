"""Which machine measured, and with which code."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from rlhf.runs.manifest import git_state


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system and Python."""
    return {
        "processor": processor_name(_read("/proc/cpuinfo")) or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory_gib(_read("/proc/meminfo")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": ".".join(str(part) for part in sys.version_info[:3]),
    }


def describe_code() -> dict[str, Any]:
    """The commit, and whether tracked files differ from it."""
    revision, dirty = git_state(Path(__file__))
    return {"commit": revision, "dirty": dirty}


def processor_name(cpuinfo: str) -> str | None:
    """The first `model name` of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def memory_gib(meminfo: str) -> float | None:
    """MemTotal of /proc/meminfo in GiB."""
    for line in meminfo.splitlines():
        key, _, value = line.partition(":")
        if key == "MemTotal":
            return round(int(value.split()[0]) / 2**20, 1)
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""

"""What every process that measures runs under, and the files that it leaves."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.runs.locks import Locks

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: `python -m` finds our packages there."""


def environment(threads: int, path: Path | None) -> dict[str, str]:
    """The same number of threads for all, no network, nothing reported; `path` goes on PYTHONPATH."""
    variables = {
        **os.environ,
        **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")},
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "WANDB_MODE": "disabled",
    }
    variables.pop("PYTHONPATH", None)
    if path is not None:
        variables["PYTHONPATH"] = str(path)
    return variables


@contextmanager
def alone_in(build: Path) -> Iterator[None]:
    """Inside the block no other benchmark works in the folder, whose files have the same names each time.

    Raises:
        UserError: another one does.
    """
    locks = Locks()
    locks.work_in(build, does="is running a benchmark (`--build ...` names another folder)")
    try:
        yield
    finally:
        locks.close()


def file_name(title: str) -> str:
    """A title as a file's name: no space, no comma."""
    return title.replace(" ", "-").replace(",", "")


def last_lines(log: Path, number: int = 15) -> str:
    """The end of what a process wrote to its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-number:])

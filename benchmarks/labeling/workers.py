"""Labelers as processes of their own, and what was acknowledged to them."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT


def start_labeler(location: str, labeler: str, log: Path) -> "subprocess.Popen[str]":
    """A process that ranks all it is given, and writes down what was acknowledged."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.labeling.labeler", location, labeler, str(log)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def acknowledged(folder: Path) -> list[tuple[int, str, float]]:
    """Item, name and milliseconds of every submission that was acknowledged to a labeler's process."""
    lines = [line.split() for path in folder.glob("*.log") for line in path.read_text().splitlines()]
    return [(int(item), name, float(taken)) for item, name, taken in lines]

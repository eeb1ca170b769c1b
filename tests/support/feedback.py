"""The test server of `tests.feedback_server` as a process, and small recipes that ask it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
GOLD = "configs/tiny/gold.py:score"


@contextmanager
def feedback_server(*options: str) -> Iterator[str]:
    """Start a server and give its URL."""
    command = [sys.executable, "-m", "tests.feedback_server", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), url
            yield url
        finally:
            process.kill()


def write_recipe(folder: Path, url: str, *, endpoint: dict[str, Any] | None = None, **groups: Any) -> Path:
    """A recipe whose constitution asks the server at `url`; `groups` are the constitution's settings."""
    asked = {"url": url, "model": "judge", "backoff_seconds": 0.01, **(endpoint or {})}
    constitution = {
        "path": "configs/constitutions/tiny.yaml",
        "num_examples": 0,
        "feedback": {"endpoint": asked},
        **groups,
    }
    values = {
        "run": {"name": "run", "folder": str(folder / "runs"), "seed": 5, "device": "cpu"},
        "model": {"scratch": {}},
        "labeling": {"constitution": constitution},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]

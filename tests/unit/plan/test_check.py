"""The comparison with what an iteration really takes, and the figures that it left in the documents."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planner import CHECKED, SHAPES, recipe_of, run_iteration

ROOT = Path(__file__).resolve().parents[3]
RUNS = json.loads((ROOT / "docs/memory-check.json").read_text())


@pytest.mark.parametrize("run", RUNS, ids=["default allocator", "threshold fixed"])
def test_the_published_check_is_within_15_percent_on_three_shapes_of_two_gigabytes(
    run: dict[str, list[dict[str, Any]]],
) -> None:
    assert [row["shape"] for row in run["rows"]] == list(CHECKED)
    for row in run["rows"]:
        assert row["measured_bytes"] >= 2e9
        assert abs(row["planned_bytes"] / row["measured_bytes"] - 1) <= 0.15


def test_the_document_shows_the_published_figures() -> None:
    text = (ROOT / "docs/memory.md").read_text()
    for plain, fixed in zip(RUNS[0]["rows"], RUNS[1]["rows"], strict=True):
        line = next(
            line for line in text.splitlines() if line.count("|") == 9 and f"| {plain['shape']} |" in line
        )
        for number in (plain["planned_bytes"], plain["measured_bytes"], fixed["measured_bytes"]):
            assert f"{number / 2**30:.3f} GiB" in line


def test_an_iteration_of_the_toy_runs_as_that_of_a_shape_does() -> None:
    assert run_iteration("toy", "cpu") == {}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_a_recipe(name: str, tmp_path: Path) -> None:
    assert "ppo" in recipe_of(name, tmp_path).sections

from typing import Any

from benchmarks.trl.report import markdown, median_range
from benchmarks.trl.summary import summarize
from tests.unit.benchmarks.trl.results import result


def report() -> dict[str, Any]:
    rounds = [
        {
            "peer, all layers": result("peer, all layers", [9, 4], tokens=(3, 5)),
            "ours, all layers": result("ours, all layers", [9, 2], tokens=(4, 4)),
        }
    ]
    return {
        "title": "ppo-fixed, toy",
        "conditions": "As they were.",
        "machine": {"processor": "P", "cores": 2, "memory_gib": 4.0, "system": "S", "python": "3.11.0"},
        "code": {"commit": "0123456789abcdef", "dirty": True},
        "device": "cpu",
        "threads": 1,
        "seeds": [0],
        "unit": "iterations",
        "units_per_lap": 1,
        "lap": "iteration",
        "differences": ["This.", "That."],
        **summarize(rounds, [("ours, all layers", "peer, all layers")]),
    }


def test_a_single_round_has_no_range_to_show() -> None:
    assert median_range({"median": 2.0, "low": 2.0, "high": 2.0, "num": 1}) == "2.00"
    assert median_range({"median": 2.0, "low": 1.0, "high": 3.0, "num": 2}) == "2.00 [1.00, 3.00]"


def test_a_report_says_under_which_conditions_and_what_differs() -> None:
    text = markdown(report())
    for part in ("As they were.", "0123456789 with changes", "threads 1", "seeds 0", "- This.", "- That."):
        assert part in text
    assert "| ours, all layers | peer, all layers | 2.00 | 2.00 | 1.00 | 2.00 |" in text
    assert "| ours, all layers | 0.5 | 2.00 | 1.00 | 1 | 4 | policy 3, value 4 |" in text
    assert "| peer, all layers | 2 | 4.0 |" in text


def test_every_table_of_a_report_is_rectangular() -> None:
    for block in markdown(report()).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1

import json
from pathlib import Path
from typing import Any

from benchmarks.report import markdown, spread, table
from benchmarks.suite import write_report
from benchmarks.summary import summarize
from tests.unit.benchmarks.results import result


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


def test_a_table_has_as_many_cells_in_every_row() -> None:
    lines = table(["a", "b"], [["1", "2"], ["3", "4"]]).splitlines()
    assert [line.count("|") for line in lines] == [3, 3, 3, 3]


def test_a_single_round_has_no_spread_to_show() -> None:
    assert spread({"median": 2.0, "low": 2.0, "high": 2.0, "num": 1}) == "2.00"
    assert spread({"median": 2.0, "low": 1.0, "high": 3.0, "num": 2}) == "2.00 [1.00, 3.00]"


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


def test_the_json_keeps_every_round(tmp_path: Path) -> None:
    text = write_report(report(), tmp_path, rounds=[{"ours": {"laps": []}}])
    data = json.loads((tmp_path / "ppo-fixed-toy.json").read_text())
    assert data["rounds"] == [{"ours": {"laps": []}}]
    assert (tmp_path / "ppo-fixed-toy.md").read_text() == text

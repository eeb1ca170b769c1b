from benchmarks.trl.learning_summary import compare, learning_markdown, summarize_learning
from tests.unit.benchmarks.trl.results import curve

PEER = curve("peer, all layers", 1, [(0, 0.2, 0), (100, 0.6, 2), (200, 1.2, 4)])
OURS = curve("ours, all layers", 1, [(0, 0.2, 0), (40, 0.9, 1), (80, 1.3, 5)])


def test_times_are_those_of_shares_of_the_peers_gain() -> None:
    half, most = compare(OURS, PEER)["reached"]
    assert half["gold"] == 0.7
    assert round(half["ours_cpu_seconds"], 6) == round(40 * 0.5 / 0.7, 6)
    assert round(half["peer_cpu_seconds"], 6) == round(100 + 100 / 6, 6)
    assert round(half["peer_wall_seconds"], 6) == round(200 + 200 / 6, 6)
    assert round(most["gold"], 6) == 1.1
    assert round(most["peer_samples"], 6) == round(10 + 10 * 0.5 / 0.6, 6)


def test_gold_is_compared_over_the_kl_that_both_have_reached() -> None:
    equal = compare(OURS, PEER)["equal_kl"]
    assert equal["kl_nats"] == 4
    assert round(equal["peer_gold"], 6) == round((0.4 * 2 + 0.9 * 2) / 4, 6)
    assert round(equal["ours_gold"], 6) == round((0.55 * 1 + 1.05 * 3) / 4, 6)
    assert equal["interval"] is None  # nothing was kept of single prompts


def test_what_is_never_reached_is_said_so() -> None:
    flat = curve("ours, all layers", 1, [(0, 0.2, 0), (40, 0.3, 1)])
    assert compare(flat, PEER)["reached"][0]["ours_cpu_seconds"] is None


def test_a_curves_end_is_a_line_and_not_every_metric_of_it() -> None:
    [end] = summarize_learning([PEER], [])["ends"]
    assert (end["gold_before"], end["gold"], end["kl_nats"]) == (0.2, 1.2, 4)
    assert [key for key, value in end.items() if isinstance(value, dict)] == []


def test_the_report_has_a_row_for_every_curve_and_every_share() -> None:
    report = {
        "title": "learning, stories",
        "conditions": "C.",
        "machine": {"processor": "P", "cores": 2, "memory_gib": 4.0, "system": "S", "python": "3.11.0"},
        "code": {"commit": None, "dirty": None},
        "device": "cpu",
        "threads": 1,
        "seeds": [1],
        "differences": ["This."],
        **summarize_learning([PEER, OURS], [("ours, all layers", "peer, all layers")]),
    }
    text = learning_markdown(report)
    assert "| peer, all layers | 1 | 0.200 → 1.200 | 4.00 | 20 | 200 | 400 |" in text
    assert "| 50% (gold 0.700) | 29 / 117 |" in text
    assert "| ours, all layers | peer, all layers | 1 | 0 to 4.00 | 0.925 | 0.650 | +0.275 |" in text

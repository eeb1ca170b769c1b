from benchmarks.trl.summary import breakdown, lengths_summary, summarize
from tests.unit.benchmarks.trl.results import result

ROUNDS = [
    {"peer": result("peer", [99, 4, 4], increment=8 * 2**20), "ours": result("ours", [50, 2, 2])},
    {"peer": result("peer", [99, 9, 9], increment=8 * 2**20), "ours": result("ours", [50, 3, 3])},
    {"peer": result("peer", [99, 6, 2], increment=8 * 2**20), "ours": result("ours", [50, 1, 1])},
]


def test_laps_that_warm_up_do_not_count() -> None:
    summary = summarize(ROUNDS, [])["racers"]["ours"]
    assert summary["wall_seconds_per_lap"] == {"median": 2, "low": 1, "high": 3, "num": 3}
    assert summary["cpu_seconds_per_lap"]["median"] == 1


def test_ratios_are_those_of_the_rounds() -> None:
    [ratio] = summarize(ROUNDS, [("ours", "peer")])["ratios"]
    assert ratio["wall"] == ratio["cpu"] == {"median": 3, "low": 2, "high": 4, "num": 3}
    assert ratio["memory"]["median"] == 8


def test_shorter_responses_are_not_speed() -> None:
    peer, ours = result("peer", [9, 4], tokens=(8, 8)), result("ours", [9, 2], tokens=(4, 4))
    [ratio] = summarize([{"peer": peer, "ours": ours}], [("ours", "peer")])["ratios"]
    assert (ratio["wall"]["median"], ratio["wall_per_token"]["median"]) == (2, 1)


def test_optimizer_steps_that_differ_between_laps_all_show() -> None:
    odd = result("ours", [1, 1])
    laps = [odd.laps[0], odd.laps[1].model_copy(update={"optimizer_steps": 18})]
    rounds = [{"ours": odd.model_copy(update={"laps": laps})}]
    assert summarize(rounds, [])["racers"]["ours"]["optimizer_steps_per_lap"] == [4, 18]


def test_lengths_are_pooled_over_rounds() -> None:
    found = lengths_summary([result("ours", [1, 1], tokens=(1, 3)), result("ours", [1, 1], tokens=(5, 7))])
    assert found is not None
    assert (found["num"], found["mean"], found["p50"], found["max"], found["ended"]) == (4, 4, 4, 7, 1)
    assert lengths_summary([result("ours", [1, 1])]) is None


def test_a_breakdown_is_of_counted_laps() -> None:
    assert breakdown([result("ours", [99, 4, 8])]) == {"sampling": 1.5}

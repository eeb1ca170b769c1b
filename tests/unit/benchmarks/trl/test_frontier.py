import numpy as np

from benchmarks.trl.frontier import compare_frontiers
from benchmarks.trl.jobs import Curve
from tests.unit.benchmarks.trl.results import curve

NUM_PROMPTS = 200


def noisy(racer: str, slope: float, noise_seed: int) -> Curve:
    """Gold rises by `slope` a nat, up to 6 nats; every prompt strays from it on its own."""
    random = np.random.default_rng(noise_seed)
    made = curve(racer, 1, [(i, slope * i, i) for i in range(7)])
    points = []
    for point in made.points:
        golds = point.gold + random.normal(0, 0.5, NUM_PROMPTS)
        kls = point.kl_nats + random.normal(0, 0.1, NUM_PROMPTS)
        kept = {"golds": golds.tolist(), "kls_nats": kls.tolist()}
        points.append(point.model_copy(update={**kept, "gold": golds.mean(), "kl_nats": kls.mean()}))
    return made.model_copy(update={"points": points})


def test_the_interval_holds_zero_for_equal_policies_and_not_for_better_ones() -> None:
    same = compare_frontiers(noisy("ours", 0.1, 1), noisy("peer", 0.1, 2))
    better = compare_frontiers(noisy("ours", 0.2, 1), noisy("peer", 0.1, 2))
    assert same["interval"][0] < 0 < same["interval"][1]
    assert 0 < better["interval"][0] < 0.1 * 3 < better["interval"][1]


def test_intervals_are_the_same_every_time() -> None:
    ours, peer = noisy("ours", 0.1, 1), noisy("peer", 0.1, 2)
    assert compare_frontiers(ours, peer) == compare_frontiers(ours, peer)


def test_a_curve_that_went_farther_is_read_up_to_the_shorter_ones_end() -> None:
    far = curve("ours", 1, [(0, 0.0, 0), (1, 1.0, 2), (2, 100.0, 4)])
    near = curve("peer", 1, [(0, 0.0, 0), (1, 1.0, 2)])
    assert compare_frontiers(far, near)["difference"] == 0


def test_the_order_in_which_a_curve_came_by_its_kl_does_not_matter() -> None:
    there = curve("ours", 1, [(0, 0.0, 0), (1, 1.0, 2), (2, 2.0, 4)])
    back = curve("peer", 1, [(0, 0.0, 0), (1, 2.0, 4), (2, 1.0, 2)])
    assert compare_frontiers(there, back)["difference"] == 0

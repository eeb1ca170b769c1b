"""Coefficients of agreement against their definitions, written out pair by pair, and published values."""

import json
import math
from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.analysis.agreement import (
    Ratings,
    agreement,
    agreement_with_others,
    cohen,
    cohens,
    item_agreement,
)
from labeling.analysis.status import taus
from rlhf.statistics.evaluation import Estimate
from tests.unit.labeling.made import label, pair

TABLES = st.lists(st.lists(st.integers(-1, 2), min_size=3, max_size=3), min_size=2, max_size=8)
"""Units by three labelers; −1 says nothing."""
NAMES = ("ann", "bo", "cy")


def ratings(rows: list[list[int]]) -> Ratings:
    return Ratings(NAMES, np.array(rows), np.arange(len(rows)), tuple(range(len(rows))))


def given_values(rows: list[list[int]]) -> list[list[int]]:
    """The values of each unit that two labelers or more have judged."""
    units = [[value for value in row if value >= 0] for row in rows]
    return [unit for unit in units if len(unit) >= 2]


def value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def alpha_by_definition(rows: list[list[int]], ordinal: bool) -> float | None:
    """1 − observed over expected disagreement, over all ordered pairs of values (Krippendorff 2011)."""
    units = given_values(rows)
    pooled = Counter(v for unit in units for v in unit)

    def distance(a: int, b: int) -> float:
        if not ordinal:
            return float(a != b)
        low, high = min(a, b), max(a, b)
        return (sum(pooled[v] for v in range(low, high + 1)) - (pooled[a] + pooled[b]) / 2) ** 2

    num = pooled.total()
    if num < 2:
        return None
    observed = (
        sum(sum(distance(a, b) for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units) / num
    )
    expected = sum(distance(a, b) for a, b in permutations(pooled.elements(), 2)) / (num * (num - 1))
    return None if expected == 0 else 1 - observed / expected


@given(TABLES, st.booleans())
def test_krippendorffs_alpha_is_its_definition(rows: list[list[int]], ordinal: bool) -> None:
    found = agreement(ratings(rows), num_resamples=2)
    estimate = found.krippendorff_ordinal if ordinal else found.krippendorff_nominal
    assert value(estimate) == pytest.approx(alpha_by_definition(rows, ordinal))


@given(TABLES)
def test_cohens_kappa_is_its_definition(rows: list[list[int]]) -> None:
    both = [(row[0], row[1]) for row in rows if row[0] >= 0 and row[1] >= 0]
    expected = None
    if both:
        observed = sum(a == b for a, b in both) / len(both)
        chance = sum(a == b for a, _ in both for _, b in both) / len(both) ** 2
        expected = None if chance == 1 else (observed - chance) / (1 - chance)
    assert value(cohen(ratings(rows), "ann", "bo", num_resamples=2)) == pytest.approx(expected)


@given(TABLES)
def test_pairwise_agreement_counts_every_two_labelers_of_a_unit(rows: list[list[int]]) -> None:
    pairs = [a == b for unit in given_values(rows) for a, b in combinations(unit, 2)]
    expected = sum(pairs) / len(pairs) if pairs else None
    found = agreement(ratings(rows), num_resamples=2)
    assert value(found.pairwise) == pytest.approx(expected)
    assert found.num_units == len(given_values(rows))
    assert found.unanimous_items == sum(len(set(unit)) == 1 for unit in given_values(rows))


def test_fleisss_kappa_by_hand() -> None:
    rows = [[0, 0, 0], [0, 0, 2], [2, 2, 2], [1, 2, 2]]
    shares = [5 / 12, 1 / 12, 6 / 12]
    chance = sum(share**2 for share in shares)
    observed = (1 + 1 / 3 + 1 + 1 / 3) / 4
    found = agreement(ratings(rows), num_resamples=2)
    assert value(found.fleiss) == pytest.approx((observed - chance) / (1 - chance))


def test_full_agreement_is_one_and_a_coin_is_about_zero() -> None:
    rng = np.random.default_rng(0)
    same = rng.integers(0, 3, size=(400, 1)).repeat(3, axis=1)
    coin = rng.integers(0, 3, size=(4000, 3))
    for table, expected, tolerance in ((same, 1.0, 1e-12), (coin, 0.0, 0.05)):
        found = agreement(ratings(table.tolist()), num_resamples=10)
        for estimate in (found.fleiss, found.krippendorff_nominal, found.krippendorff_ordinal):
            assert value(estimate) == pytest.approx(expected, abs=tolerance)


def test_one_value_alone_determines_no_coefficient() -> None:
    found = agreement(ratings([[0, 0, 0]] * 5))
    assert (found.fleiss, found.krippendorff_nominal, found.krippendorff_ordinal) == (None, None, None)
    assert value(found.pairwise) == 1.0


def test_an_interval_resamples_items_and_not_their_pairs() -> None:
    """K = 4 completions: 6 pairs of an item that agree or disagree together must not look like 6 items."""
    rng = np.random.default_rng(1)
    turned = rng.random(60) < 0.5
    labels = [label(n, "ann", (1, 2, 3, 4)) for n in range(60)]
    labels += [label(n, "bo", (4, 3, 2, 1) if turned[n] else (1, 2, 3, 4)) for n in range(60)]
    estimate = agreement(Ratings.of(labels)).pairwise
    assert estimate is not None
    spread = 2 * 1.96 * math.sqrt(turned.mean() * (1 - turned.mean()) / 60)
    assert estimate.high - estimate.low == pytest.approx(spread, rel=0.15)


def test_rankings_become_the_pairs_that_they_imply() -> None:
    found = Ratings.of([label(7, "bo", (2, 1, "F", "F")), label(7, "ann", (1, 1, 3, "F"))])
    assert (found.labelers, found.item_ids) == (("ann", "bo"), (7,))
    # Pairs 01, 02, 03, 12, 13, 23; two failed ones are not compared.
    assert found.values_UL.T.tolist() == [[1, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, -1]]


def test_agreement_with_others_and_of_an_item_by_hand() -> None:
    labels = [pair(1, "ann", 0), pair(1, "bo", 0), pair(1, "cy", 2), pair(2, "ann", 1), pair(2, "bo", 2)]
    found = Ratings.of([*labels, pair(3, "cy", 0)])
    assert value(agreement_with_others(found, "ann")) == pytest.approx(1 / 3)
    assert value(agreement_with_others(found, "cy")) == 0.0
    assert item_agreement(found).tolist() == [pytest.approx(1 / 3), 0.0, pytest.approx(math.nan, nan_ok=True)]


def test_tau_compares_with_the_consensus_of_the_others() -> None:
    labels = [label(1, "ann", (1, 2, 3)), label(1, "bo", (1, 2, 3)), label(1, "cy", (3, 2, 1))]
    found = taus(labels)
    assert value(found["cy"]) == -1.0  # ann and bo agree on the opposite
    assert "ann" not in found  # bo and cy cancel: their consensus ties everything


def test_published_values_of_pandalm(shared: Path) -> None:
    rows = json.loads((shared / "data" / "pandalm" / "testset-v1.json").read_text())
    place = {1: 0, 0: 1, 2: 2}
    table = [[place[int(row[f"annotator{n}"])] for n in (1, 2, 3)] for row in rows]
    found = agreement(ratings(table))
    kappas = [round(kappa.value, 4) for kappa in cohens(ratings(table)).values() if kappa]
    assert kappas == [0.8520, 0.8789, 0.8617]
    coefficients = (found.fleiss, found.krippendorff_nominal, found.krippendorff_ordinal)
    assert [round(each.value, 4) for each in coefficients if each] == [0.8642, 0.8642, 0.8775]
    assert (found.unanimous_items, found.compared_items) == (879, 999)

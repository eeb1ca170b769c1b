import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.constitution.opinions import (
    Opinion,
    entropy_bits,
    log_odds,
    probability,
    sigmoid,
    triads_in_circle,
)
from labeling.store.judgements import ranks_of

LOG_ODDS = st.floats(-5, 5)


@given(LOG_ODDS, LOG_ODDS)
def test_asking_in_both_orders_takes_a_position_bias_out(preference: float, bias: float) -> None:
    opinion = Opinion(preference + bias, -preference + bias)
    assert opinion.log_odds == pytest.approx(preference)
    assert opinion.bias == pytest.approx(bias)
    assert probability([opinion]) == pytest.approx(sigmoid(preference))


def test_orders_are_consistent_where_the_preference_is_stronger_than_the_bias() -> None:
    assert Opinion(2 + 1, -2 + 1).consistent
    assert not Opinion(1 + 2, -1 + 2).consistent


@pytest.mark.parametrize("answers", [(0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)])
def test_a_tie_in_either_order_is_neither_consistent_nor_not(answers: tuple[float, float]) -> None:
    assert Opinion(*answers).consistent is None


def test_one_order_alone_decides_nothing() -> None:
    half = Opinion(3.0, None)
    assert (half.log_odds, half.bias, half.consistent) == (None, None, None)
    assert probability([half]) is None
    assert probability([half, Opinion(1.0, -1.0)]) == pytest.approx(sigmoid(1.0))


def test_principles_are_averaged_in_log_odds() -> None:
    assert probability([Opinion(3.0, -3.0), Opinion(-1.0, 1.0)]) == pytest.approx(sigmoid(1.0))


def test_a_clamp_bounds_each_principle_before_they_are_averaged() -> None:
    sure = Opinion(9.0, -9.0)
    assert probability([sure], clamp=0.4) == pytest.approx(0.6)
    assert probability([sure, Opinion(-9.0, 9.0)], clamp=0.4) == pytest.approx(0.5)
    assert probability([Opinion(0.1, -0.1)], clamp=0.4) == pytest.approx(sigmoid(0.1))


@given(st.floats(0.001, 0.999))
def test_log_odds_and_probability_are_inverse(value: float) -> None:
    assert sigmoid(log_odds(value)) == pytest.approx(value)


def test_certainty_stays_finite() -> None:
    assert math.isfinite(log_odds(0.0))
    assert log_odds(1.0) == -log_odds(0.0)
    assert Opinion(1e9, -1e9).log_odds == log_odds(1.0)


def test_ranks_follow_the_share_of_wins_and_tie_where_it_is_equal() -> None:
    assert ranks_of([(0, 1, 0.9), (0, 2, 0.8), (1, 2, 0.7)], 3) == (1, 2, 3)
    assert ranks_of([(0, 1, 0.5)], 2) == (1, 1)
    assert ranks_of([(0, 1, 0.9)], 3) == (1, 3, 2)  # the third is not compared: neither good nor bad


def test_entropy_is_a_bit_for_a_coin_and_nothing_for_certainty() -> None:
    assert [entropy_bits(p) for p in (0.5, 0.0, 1.0)] == [1.0, 0.0, 0.0]


def test_circles_are_counted() -> None:
    around = [(0, 1, 0.9), (1, 2, 0.9), (0, 2, 0.1)]
    assert triads_in_circle(around) == 1
    assert triads_in_circle([(0, 1, 0.9), (1, 2, 0.9), (0, 2, 0.9)]) == 0

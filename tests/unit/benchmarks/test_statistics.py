import pytest

from benchmarks.statistics import MedianRange, first_crossing, paired_ratios, quantile


def test_a_slow_round_does_not_change_a_paired_ratio() -> None:
    assert paired_ratios([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == MedianRange(2.0, 2.0, 3.0, 3)


def test_every_round_needs_both_numbers() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0, 2.0], [1.0])


def test_quantiles_are_between_neighbouring_values() -> None:
    assert [quantile([4, 1, 3, 2], share) for share in (0.0, 0.5, 1.0)] == [1, 2.5, 4]
    assert quantile([7], 0.9) == 7


def test_a_curve_reaches_a_level_between_two_points() -> None:
    line = [(0.0, 1.0), (10.0, 2.0), (20.0, 1.0), (30.0, 5.0)]
    assert first_crossing(line, 1.5) == 5.0
    assert first_crossing(line, 3.0) == 25.0
    assert first_crossing(line, 0.5) == 0.0
    assert first_crossing(line, 5.1) is None

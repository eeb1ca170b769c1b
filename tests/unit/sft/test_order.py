"""The order of the training rows, and their number on every process."""

import numpy as np
import pytest
from datasets import Dataset

from sft.order import SeededOrder, fill_up, row_lengths


def test_every_example_comes_once_an_epoch() -> None:
    order = SeededOrder([3] * 101, batch_size=8, seed=0)
    assert sorted(order) == list(range(101))


def test_seed_and_epoch_alone_decide() -> None:
    order, again = (SeededOrder(range(50), batch_size=8, seed=4) for _ in range(2))
    first = list(order)
    np.random.random(3)
    assert list(again) == first
    again.begin_epoch(1)
    assert list(again) != first
    assert list(SeededOrder(range(50), batch_size=8, seed=5)) != first


def test_lengths_reorder_only_within_an_optimizer_step() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=50)
    plain = list(SeededOrder([1] * 50, batch_size=8, seed=0))
    sorted_ = list(SeededOrder(lengths.tolist(), batch_size=8, seed=0))
    for first in range(0, 50, 8):
        step = sorted_[first : first + 8]
        assert set(step) == set(plain[first : first + 8])
        assert lengths[step].tolist() == sorted(lengths[step].tolist(), reverse=True)


def test_dummy_rows_come_last_and_change_no_order() -> None:
    lengths = [5] * 22
    plain = list(SeededOrder(lengths, batch_size=8, seed=1))
    filled = list(SeededOrder([*lengths, 1, 1], batch_size=8, seed=1, num_dummies=2))
    assert filled == [*plain, 22, 23]


@pytest.mark.parametrize("steps_done", [0, 1, 6, 7, 100])
def test_rows_of_steps_that_are_done_are_left_out_and_no_others(steps_done: int) -> None:
    order = SeededOrder(range(50), batch_size=8, seed=4)
    whole = list(order)
    order.begin_epoch(0, steps_done=steps_done)
    assert list(order) == whole[8 * steps_done :]
    assert len(order) == 50  # the number of steps in an epoch comes from it


@pytest.mark.parametrize(("num_rows", "expected"), [(6, 0), (5, 1), (4, 2)])
def test_dummies_make_a_multiple_and_no_loss_is_taken_of_them(num_rows: int, expected: int) -> None:
    rows = Dataset.from_dict({"input_ids": [[7, 8, 9]] * num_rows, "labels": [[-100, 8, 9]] * num_rows})
    filled, num_dummies = fill_up(rows, 3)
    assert (len(filled), num_dummies) == (6, expected)
    assert row_lengths(filled) == [3] * num_rows + [1] * expected
    assert filled["labels"][num_rows:] == [[-100]] * expected
    assert filled.select(range(num_rows)).to_dict() == rows.to_dict()

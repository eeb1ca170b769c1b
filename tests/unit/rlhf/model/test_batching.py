"""Sequences put together: padding, batches within a token budget, and parts of nearly equal cost."""

import itertools

import numpy as np
import pytest
import torch

from rlhf.model.batching import TokenBatch, pad, split_by_cost, token_batches

SEQUENCES = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 60, 80)]


@pytest.mark.parametrize("left", [False, True])
def test_the_mask_keeps_every_token_in_order_and_padding_is_on_one_side(left: bool) -> None:
    ids_BL, mask_BL = pad(SEQUENCES, 7, "cpu", left=left)
    assert ids_BL.shape == mask_BL.shape == (4, 4)
    assert [ids_BL[row][mask_BL[row]].tolist() for row in range(4)] == SEQUENCES
    assert (ids_BL[~mask_BL] == 7).all()
    edge_B = mask_BL[:, -1] if left else mask_BL[:, 0]
    assert edge_B.all()


def test_the_last_place_of_a_row_holds_its_last_token() -> None:
    batch = TokenBatch.of(SEQUENCES, 0, "cpu")
    assert batch.ids_BL.flatten()[batch.last_B].tolist() == [ids[-1] for ids in SEQUENCES]
    full = TokenBatch(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert full.ids_BL.flatten()[full.last_B].tolist() == [3, 6]


@pytest.mark.parametrize("budget", [1, 59, 200, 10**6])
def test_batches_hold_every_place_once_within_the_budget_and_ascend_in_length(budget: int) -> None:
    batches = list(token_batches(LENGTHS, budget))
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(len(LENGTHS)))
    assert [LENGTHS[place] for place in places] == sorted(LENGTHS)
    for batch in batches:
        padded = max(LENGTHS[place] for place in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
    for batch, following in itertools.pairwise(batches):  # and none could have taken one more
        assert LENGTHS[following[0]] * (len(batch) + 1) > budget


def test_places_of_one_length_keep_their_order() -> None:
    assert list(token_batches([3, 2, 3, 2, 3], 6)) == [[1, 3], [0, 2], [4]]


def test_a_place_may_stand_for_several_rows() -> None:
    assert list(token_batches([4, 4, 4], 24, num_rows=[2, 4, 3])) == [[0, 1], [2]]
    assert list(token_batches([4, 4], 8, num_rows=[9, 1])) == [[0], [1]]
    assert list(token_batches([], 8)) == []


@pytest.mark.parametrize("num_parts", [1, 2, 3, 90])
def test_parts_hold_every_place_once_and_differ_by_one_cost_at_most(num_parts: int) -> None:
    parts = split_by_cost(LENGTHS, num_parts)
    assert len(parts) == num_parts
    assert sorted(place for part in parts for place in part) == list(range(len(LENGTHS)))
    assert all(part == sorted(part) for part in parts)
    totals = [sum(LENGTHS[place] for place in part) for part in parts]
    assert max(totals) - min(totals) <= max(LENGTHS)

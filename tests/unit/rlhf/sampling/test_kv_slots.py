"""The cache of slots by itself: what attention reads is what each slot's row has, wherever it begins."""

import pytest
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from rlhf.sampling.kv_slots import Columns, KVSlots, SlotLayer, columns_for

LONGEST_PROMPT = 4


def slots(num_slots: int, capacity: int, *, fixed_shapes: bool = False) -> KVSlots:
    columns = Columns(num_slots, capacity, fixed_shapes=fixed_shapes, device=torch.device("cpu"))
    return KVSlots(columns, num_layers=1, longest_prompt=LONGEST_PROMPT)


def prompts(*rows: list[int]) -> tuple[Cache, Tensor]:
    """A cache in which each token's key and value is the token itself, and the mask of its columns."""
    width = max(len(row) for row in rows)
    numbers = torch.tensor([[0] * (width - len(row)) + row for row in rows]).float()
    layer = DynamicLayer()
    layer.update(numbers[:, None, :, None], -numbers[:, None, :, None])
    return Cache(layers=[layer]), numbers > 0


def step(kv: KVSlots, numbers: list[int]) -> list[list[int]]:
    """Feed one token to each slot; the keys that each slot's attention reads."""
    kv.columns.advance()
    new = torch.tensor(numbers).float()[:, None, None, None]
    layer = kv.cache.layers[0]
    assert isinstance(layer, SlotLayer)
    keys, values = layer.update(new, -new)
    assert torch.equal(keys, -values)
    valid = kv.columns.window_SC
    return [keys[row, 0, valid[row], 0].long().tolist() for row in range(len(numbers))]


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_row_that_comes_later_is_read_as_one_that_was_there_from_the_start(fixed_shapes: bool) -> None:
    kv = slots(2, 12, fixed_shapes=fixed_shapes)
    kv.lay_in(torch.tensor([0, 1]), *prompts([1, 2, 3, 4], [5, 6]))
    assert step(kv, [7, 8]) == [[1, 2, 3, 4, 7], [5, 6, 8]]
    kv.release(torch.tensor([1]))
    kv.make_room(torch.tensor([True, False]))
    assert step(kv, [9, 0])[0] == [1, 2, 3, 4, 7, 9]
    kv.lay_in(torch.tensor([1]), *prompts([10, 11, 12]))
    kv.make_room(torch.tensor([True, True]))
    assert step(kv, [13, 14]) == [[1, 2, 3, 4, 7, 9, 13], [10, 11, 12, 14]]


def test_columns_that_move_to_the_front_keep_every_row_and_room_for_a_prompt() -> None:
    kv = slots(2, 8)
    kv.lay_in(torch.tensor([0, 1]), *prompts([1, 2, 3, 4], [5]))
    for number in range(6, 10):
        kv.make_room(torch.tensor([True, True]))
        step(kv, [number, number])
    kv.release(torch.tensor([0]))
    kv.make_room(torch.tensor([False, True]))  # at the end: the columns from that of the 5 on move
    assert kv.columns.end == 5
    assert step(kv, [0, 10])[1] == [5, 6, 7, 8, 9, 10]
    kv.lay_in(torch.tensor([0]), *prompts([20, 21, 22, 23]))
    assert kv.columns.first_S.tolist() == [2, 0]


def test_slots_that_are_kept_keep_their_rows() -> None:
    kv = slots(3, 8)
    kv.lay_in(torch.tensor([0, 1, 2]), *prompts([1], [2, 3], [4]))
    kv.keep(torch.tensor([1]))
    assert step(kv, [5]) == [[2, 3, 5]]


def test_a_window_begins_where_the_first_busy_row_does() -> None:
    kv = slots(2, 8)
    kv.lay_in(torch.tensor([0, 1]), *prompts([1, 2, 3, 4], [5]))
    kv.make_room(torch.tensor([False, True]))
    kv.columns.advance()
    assert kv.columns.window_SC.shape[1] == 2


def test_only_slots_that_are_refilled_need_more_columns_than_the_longest_row() -> None:
    assert columns_for(10, 90, refills=False) == 100
    assert columns_for(10, 90, refills=True) > 100

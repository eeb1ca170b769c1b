"""Rollouts: which rows, columns and states belong together."""

from dataclasses import replace

import pytest
import torch

from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import TrunkStates, from_lists
from rlhf.settings.groups import SamplingSettings
from tests.support.small import small_backbone

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [17, 18, 19, 20]]


def test_selected_rows_lose_only_columns_that_are_padding_in_all_of_them() -> None:
    rollouts = from_lists(PROMPTS, [[20, 2], [21] * 5, [22, 23, 2], [24], [25] * 4], small_backbone())
    part = rollouts.select([3, 0])
    assert part.prompt_lists() == [PROMPTS[3], PROMPTS[0]]
    assert part.response_lists() == [[24], [20, 2]]
    assert part.prompt_ids_BP.shape == (2, 3)
    assert part.response_ids_BT.shape == (2, 2)
    assert part.ended_B.tolist() == [False, True]


@pytest.mark.parametrize("budget", [1, 8, 20, 1000])
def test_micro_batches_hold_every_row_once_within_the_budget(budget: int) -> None:
    rollouts = from_lists(PROMPTS, [[20, 2], [21] * 5, [22, 23, 2], [24], [25] * 4], small_backbone())
    batches = list(rollouts.micro_batches(budget))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(5))
    for batch in batches:
        assert len(batch.rows) == 1 or batch.tokens.ids_BL.numel() <= budget
        responses = [rollouts.response_lists()[row] for row in batch.rows]
        assert batch.response_tokens_N.tolist() == [token for ids in responses for token in ids]


def test_values_at_response_tokens_come_back_to_their_rows_and_padding_is_zero() -> None:
    rollouts = from_lists(PROMPTS, [[20, 2], [21] * 5, [22, 23, 2], [24], [25] * 4], small_backbone())
    grid_BT = torch.full(rollouts.response_mask_BT.shape, float("nan"))
    for batch in rollouts.micro_batches(20):
        batch.put(batch.response_tokens_N.float(), grid_BT)
    expected = torch.where(rollouts.response_mask_BT, rollouts.response_ids_BT, 0).float()
    torch.testing.assert_close(grid_BT.nan_to_num(0.0), expected)
    batch = rollouts.batch([4, 1])
    assert batch.take(grid_BT).tolist() == [25.0] * 4 + [21.0] * 5


def test_the_states_of_a_selection_are_those_of_its_rows() -> None:
    rollouts = from_lists(PROMPTS, [[20, 2], [21] * 5, [22, 23, 2], [24], [25] * 4], small_backbone())
    states = tuple(torch.full((length, 3), float(row)) for row, length in enumerate(rollouts.lengths))
    kept = replace(rollouts, trunk=TrunkStates(states, tuple(range(5))))
    batch = kept.select([4, 0, 3]).batch([2, 0])
    assert batch.trunk_BLH is not None
    assert batch.trunk_BLH[:, 0, 0].tolist() == [3.0, 4.0]
    assert batch.trunk_BLH.shape == (*batch.tokens.ids_BL.shape, 3)


def test_states_at_the_response_and_at_the_end_are_those_of_each_row_alone() -> None:
    backbone = small_backbone("policy")
    keys = [(0, i, 0) for i in range(len(PROMPTS))]
    settings = SamplingSettings(max_response_tokens=24)
    rollouts = sample(backbone, PROMPTS, role="policy", settings=settings, keys=keys, seed=7)
    with backbone.role("policy"), torch.no_grad():
        batch = rollouts.batch()
        grid = torch.zeros(rollouts.response_mask_BT.shape)
        batch.put(backbone.hidden(batch.tokens, wanted_M=batch.before_response_N)[:, 0], grid)
        last_BH = backbone.hidden(batch.tokens, wanted_M=batch.tokens.last_B)
        for row, (prompt, response) in enumerate(zip(PROMPTS, rollouts.response_lists(), strict=True)):
            ids = torch.tensor([prompt + response])
            alone = backbone.hidden(ids)[0]
            torch.testing.assert_close(last_BH[row], alone[-1], atol=1e-4, rtol=1e-4)
            expected = alone[len(prompt) - 1 : -1, 0]
            torch.testing.assert_close(grid[row, : len(response)], expected, atol=1e-4, rtol=1e-4)

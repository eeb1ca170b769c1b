"""Rollouts: which rows, columns and states belong together."""

import pytest
import torch

from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import from_lists
from rlhf.settings.groups import SamplingSettings
from tests.small import small_backbone

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
    parts = list(rollouts.micro_batches(budget))
    assert sorted(int(i) for rows, _ in parts for i in rows) == list(range(5))
    for rows, part in parts:
        assert len(rows) == 1 or part.input_ids_BL.numel() <= budget
        assert part.response_lists() == [rollouts.response_lists()[i] for i in rows.tolist()]


def test_states_at_the_response_and_at_the_end_are_those_of_each_row_alone() -> None:
    backbone = small_backbone("policy")
    keys = [(0, i, 0) for i in range(len(PROMPTS))]
    settings = SamplingSettings(max_response_tokens=24)
    rollouts = sample(backbone, PROMPTS, role="policy", settings=settings, keys=keys, seed=7)
    with backbone.role("policy"), torch.no_grad():
        grid = rollouts.spread(rollouts.hidden(backbone, rollouts.before_response_N)[:, 0])
        last_BH = rollouts.hidden(backbone, rollouts.last_B)
        for row, (prompt, response) in enumerate(zip(PROMPTS, rollouts.response_lists(), strict=True)):
            ids = torch.tensor([prompt + response])
            alone = backbone.hidden(ids)[0]
            torch.testing.assert_close(last_BH[row], alone[-1], atol=1e-4, rtol=1e-4)
            expected = alone[len(prompt) - 1 : -1, 0]
            torch.testing.assert_close(grid[row, : len(response)], expected, atol=1e-4, rtol=1e-4)

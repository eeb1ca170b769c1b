"""Sampling: the noise of a token belongs to its row, and log-probabilities are those of the draw."""

import pytest
import torch

from rlhf.config import SamplingSettings
from rlhf.rollouts import Rollouts, from_lists, noise, responses_text, sample
from tests.small import small_backbone

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [17, 18, 19, 20]]
KEYS = [(0, i, 0) for i in range(len(PROMPTS))]
SETTINGS = SamplingSettings(max_response_tokens=24, batch_size=8)


def draw(backbone, prompts=PROMPTS, keys=KEYS, seed=7, role="policy", settings=SETTINGS) -> Rollouts:  # type: ignore[no-untyped-def]
    return sample(backbone, prompts, role=role, settings=settings, keys=keys, seed=seed)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_samples_do_not_depend_on_the_batch(batch_size: int) -> None:
    backbone = small_backbone("policy")
    together = draw(backbone)
    apart = draw(backbone, settings=SETTINGS.model_copy(update={"batch_size": batch_size}))
    assert together.response_lists() == apart.response_lists()


def test_samples_do_not_depend_on_the_order() -> None:
    backbone = small_backbone("policy")
    order = [3, 0, 4, 2, 1]
    shuffled = draw(backbone, [PROMPTS[i] for i in order], [KEYS[i] for i in order])
    expected = draw(backbone).response_lists()
    assert shuffled.response_lists() == [expected[i] for i in order]


def test_each_part_of_the_key_and_the_seed_matter() -> None:
    backbone = small_backbone("policy")
    first = draw(
        backbone, [[5, 6]] * 5, [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    ).response_lists()
    assert first[0] == first[4]
    assert len({tuple(r) for r in first}) == 4
    assert draw(backbone, [[5, 6]], [(0, 0, 0)], seed=8).response_lists()[0] != first[0]


def test_a_response_ends_with_its_first_eos_and_only_there() -> None:
    backbone = small_backbone("policy")
    rollouts = draw(backbone, [[5 + i % 40] for i in range(60)], [(0, i, 0) for i in range(60)])
    ended = rollouts.ended_B.tolist()
    assert any(ended)
    assert not all(ended)
    for ids, end in zip(rollouts.response_lists(), ended, strict=True):
        assert 2 not in ids[:-1]
        assert (ids[-1] == 2) == end
        assert end or len(ids) == SETTINGS.max_response_tokens


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_are_those_of_a_full_forward_pass(temperature: float) -> None:
    backbone = small_backbone("policy")
    settings = SETTINGS.model_copy(update={"temperature": temperature})
    rollouts = draw(backbone, settings=settings)
    with backbone.role("policy"), torch.no_grad():
        hidden = rollouts.at_response(backbone.hidden(rollouts.input_ids_BL, rollouts.mask_BL))
        targets = rollouts.response_ids_BT[rollouts.response_mask_BT]
        logprobs, _ = backbone.logprobs(hidden, targets, temperature=temperature)
    torch.testing.assert_close(rollouts.spread(logprobs), rollouts.sampled_logprobs_BT, atol=1e-4, rtol=0)


def test_draws_follow_the_models_distribution() -> None:
    backbone = small_backbone("policy")
    count = 4000
    settings = SamplingSettings(max_response_tokens=1, batch_size=1000)
    rollouts = draw(backbone, [[5, 6]] * count, [(0, i, 0) for i in range(count)], settings=settings)
    with backbone.role("policy"), torch.no_grad():
        ids = torch.tensor([[5, 6]])
        probabilities = backbone.logits(backbone.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))[
            0, -1
        ].softmax(-1)
    counts = torch.bincount(rollouts.response_ids_BT[:, 0], minlength=60).float()
    expected = probabilities * count
    big = expected > 5
    chi_square = float(((counts - expected)[big] ** 2 / expected[big]).sum())
    degrees = int(big.sum())
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def test_noise_is_uniform_and_uncorrelated_between_neighbours() -> None:
    grid = noise(1, [(0, i, 0) for i in range(400)], 400)
    assert float(grid.min()) >= 0
    assert float(grid.max()) < 1
    assert abs(float(grid.mean()) - 0.5) < 0.005
    assert abs(float(grid.var()) - 1 / 12) < 0.002
    centred = grid - grid.mean()
    for shifted in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(float(shifted.mean())) * 12 < 0.02


@pytest.mark.parametrize("pad_token", ["<eos>", "<unk>", "w3"])
def test_the_pad_token_changes_no_sample(pad_token: str) -> None:
    own = draw(small_backbone("policy"))
    other = draw(small_backbone("policy", pad_token=pad_token))
    assert own.response_lists() == other.response_lists()
    torch.testing.assert_close(own.sampled_logprobs_BT, other.sampled_logprobs_BT, atol=1e-5, rtol=0)


def test_a_stop_string_ends_the_response_and_is_cut_from_the_text() -> None:
    backbone = small_backbone("policy")
    plain = draw(backbone)
    text = responses_text(backbone, plain, SETTINGS)[2]
    stop = text[6:12]
    settings = SETTINGS.model_copy(update={"stop": [stop]})
    stopped = draw(backbone, settings=settings)
    assert bool(stopped.ended_B[2])
    assert len(stopped.response_lists()[2]) < len(plain.response_lists()[2])
    assert responses_text(backbone, stopped, settings)[2] == text[: text.index(stop)]


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
    rollouts = draw(backbone)
    with backbone.role("policy"), torch.no_grad():
        hidden = backbone.hidden(rollouts.input_ids_BL, rollouts.mask_BL)
        grid = rollouts.spread(rollouts.at_response(hidden)[:, 0])
        for row, (prompt, response) in enumerate(zip(PROMPTS, rollouts.response_lists(), strict=True)):
            ids = torch.tensor([prompt + response])
            alone = backbone.hidden(ids, torch.ones_like(ids, dtype=torch.bool))[0]
            torch.testing.assert_close(rollouts.at_end(hidden)[row], alone[-1], atol=1e-4, rtol=1e-4)
            expected = alone[len(prompt) - 1 : -1, 0]
            torch.testing.assert_close(grid[row, : len(response)], expected, atol=1e-4, rtol=1e-4)

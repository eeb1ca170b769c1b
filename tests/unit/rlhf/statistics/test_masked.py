"""Whitening and masked moments."""

import torch

from rlhf.statistics.masked import masked_mean, masked_variance, whiten


def uneven() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(6, 9, generator=generator) * 4 + 7
    mask = torch.arange(9) < torch.tensor([1, 9, 4, 2, 7, 3]).unsqueeze(1)
    return values, mask


def test_whitened_values_have_mean_zero_and_variance_one_over_real_tokens_alone() -> None:
    values, mask = uneven()
    whitened = whiten(values, mask)
    kept = whitened[mask].double()
    assert abs(kept.mean()) < 1e-6
    assert abs(kept.var(correction=0) - 1) < 1e-5


def test_nan_in_padding_changes_nothing() -> None:
    values, mask = uneven()
    poisoned = torch.where(mask, values, float("nan"))
    assert torch.equal(whiten(values, mask), whiten(poisoned, mask))
    assert torch.equal(masked_mean(values, mask), masked_mean(poisoned, mask))
    assert (whiten(poisoned, mask)[~mask] == 0).all()


def test_without_the_shift_the_mean_stays() -> None:
    values, mask = uneven()
    torch.testing.assert_close(
        masked_mean(whiten(values, mask, shift_mean=False), mask), masked_mean(values, mask)
    )


def test_the_moments_are_those_of_the_kept_values() -> None:
    values, mask = uneven()
    torch.testing.assert_close(masked_mean(values, mask), values[mask].mean())
    torch.testing.assert_close(masked_variance(values, mask), values[mask].var(correction=0))


def test_an_empty_mask_gives_zero() -> None:
    assert masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == 0

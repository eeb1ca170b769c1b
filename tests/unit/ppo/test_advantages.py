"""Token rewards and GAE against hand arithmetic and a float64 brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.advantages import generalized_advantages, token_rewards


def prefix_mask(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def brute_force(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Σ_k (γλ)^k δ_{t+k}, written as the double sum it is."""
    n = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    gamma=st.floats(0.1, 1.0),
    lam=st.floats(0.0, 1.0),
    seed=st.integers(0, 10_000),
)
def test_gae_equals_the_double_sum_on_any_mask(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + 2
    rewards = torch.randn(len(lengths), width, generator=generator, dtype=torch.float64)
    values = torch.randn(len(lengths), width, generator=generator, dtype=torch.float64)
    mask = prefix_mask(lengths, width)
    rewards[~mask], values[~mask] = float("nan"), float("nan")
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for row, length in enumerate(lengths):
        expected = brute_force(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        torch.testing.assert_close(advantages[row, :length], torch.tensor(expected, dtype=torch.float64))
        torch.testing.assert_close(returns[row, :length], advantages[row, :length] + values[row, :length])
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_lambda_one_gives_the_return_minus_the_value() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, -1.0, 4.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    torch.testing.assert_close(returns, torch.tensor([[6.0, 5.0, 3.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[5.5, 6.0, -1.0]]))


def test_lambda_zero_gives_the_one_step_error() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, -1.0, 4.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, _ = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[-0.5, 7.0, -1.0]]))


def test_the_score_falls_on_the_last_real_token_and_the_penalty_on_every_one() -> None:
    kl = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]])
    mask = prefix_mask([2, 1], 3)
    rewards = token_rewards(torch.tensor([10.0, -5.0]), kl, mask, coefficient=0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.5, 9.0, 0.0], [-6.5, 0.0, 0.0]]))


def test_nan_in_padding_does_not_leak_into_a_reward() -> None:
    kl = torch.tensor([[1.0, float("nan")]])
    rewards = token_rewards(torch.tensor([1.0]), kl, prefix_mask([1], 2), coefficient=0.1)
    assert rewards.tolist() == [[pytest.approx(0.9), 0.0]]

"""The clipped losses, by hand and as limits."""

import torch

from ppo.losses import policy_loss, value_loss


def test_the_policy_loss_is_clipped_only_where_that_is_pessimistic() -> None:
    old = torch.zeros(4)
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, clipped = policy_loss(ratio.log(), old, advantages, clip_range=0.2, num_tokens=4)
    # min(rA, clip(r)A): 1.2, 0.5, -1.5, -0.8
    torch.testing.assert_close(loss, torch.tensor(-(1.2 + 0.5 - 1.5 - 0.8) / 4))
    assert clipped.tolist() == [True, False, False, True]


def test_a_clipped_token_has_no_gradient() -> None:
    logprobs = torch.tensor([0.5, 0.05], requires_grad=True)
    loss, _ = policy_loss(logprobs, torch.zeros(2), torch.ones(2), clip_range=0.2, num_tokens=2)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0] == 0
    assert logprobs.grad[1] < 0


def test_at_the_old_policy_the_gradient_is_the_policy_gradient() -> None:
    old = torch.randn(5)
    logprobs = old.clone().requires_grad_()
    advantages = torch.randn(5)
    loss, clipped = policy_loss(logprobs, old, advantages, clip_range=0.2, num_tokens=5)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 5)
    assert not clipped.any()


def test_micro_batches_of_any_cut_add_up_to_the_minibatch() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b, c = (torch.randn(10, generator=generator, dtype=torch.float64) for _ in range(3))
    whole, _ = policy_loss(a, b, c, clip_range=0.2, num_tokens=10)
    cut = [
        policy_loss(a[s], b[s], c[s], clip_range=0.2, num_tokens=10)[0] for s in (slice(0, 3), slice(3, 10))
    ]
    torch.testing.assert_close(whole, cut[0] + cut[1])


def test_the_value_loss_takes_the_larger_of_plain_and_clipped() -> None:
    values, old, returns = torch.tensor([2.0, 0.1]), torch.zeros(2), torch.tensor([2.0, 1.0])
    loss, clipped = value_loss(values, old, returns, clip_range=0.2, num_tokens=2)
    # token 1: plain 0, clipped (0.2 - 2)^2 = 3.24; token 2: both 0.81
    torch.testing.assert_close(loss, torch.tensor(0.5 * (3.24 + 0.81) / 2))
    assert clipped.tolist() == [True, False]

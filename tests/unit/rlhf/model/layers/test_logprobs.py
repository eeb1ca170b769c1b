"""Log-probabilities whose logits become their own gradient, against torch's."""

import pytest
import torch

from rlhf.model.layers.logprobs import token_logprobs


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_torch_s(keep: bool, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 8, generator=generator)
    targets = torch.randint(50, (11,), generator=generator)
    outer = torch.randn(11, generator=generator)
    gradients = []
    for ours in (True, False):
        hidden = torch.randn(11, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        if ours:
            found = token_logprobs(hidden, weight, targets, temperature=temperature, keep=keep)
        else:
            logprobs = torch.log_softmax(hidden @ weight.t() / temperature, -1)
            found = logprobs.gather(1, targets[:, None]).squeeze(1)
        (found * outer).sum().backward()
        gradients.append((found.detach(), hidden.grad))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], atol=1e-5, rtol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    weight, targets = torch.eye(3) * 500, torch.tensor([0, 1])
    hidden = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    found = token_logprobs(hidden, weight, targets, temperature=1.0, keep=False)
    torch.testing.assert_close(found.detach(), torch.tensor([0.0, -500.0]))
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()

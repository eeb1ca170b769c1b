"""Log-probabilities in chunks of logits."""

import pytest
import torch

from tests.support.small import small_backbone

IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])


def test_chunked_logprobs_equal_whole_ones_with_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = small_backbone("policy")
    backbone.set_trainable(["policy"])
    results = []
    for limit in (2**26, 60 * 3):
        for name in ("_LOGIT_ELEMENTS_PER_CHUNK", "_LOGIT_ELEMENTS_KEPT"):
            monkeypatch.setattr(f"rlhf.model.logits.{name}", limit)
        backbone.zero_grad()
        with backbone.role("policy"):
            hidden = backbone.hidden(IDS)[:, :-1].flatten(0, 1)
            logprobs = backbone.logprobs(hidden, IDS[:, 1:].flatten(), temperature=0.7)
            logprobs.sum().backward()
        gradients = [
            p.grad.clone() for p in backbone.adapter_parameters("policy").values() if p.grad is not None
        ]
        results.append((logprobs.detach(), gradients))
        expected = torch.log_softmax(backbone.logits(hidden) / 0.7, -1).gather(1, IDS[:, 1:].reshape(-1, 1))[
            :, 0
        ]
        torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)

"""Forward passes of the backbone: recomputed layers, and padding."""

import pytest
import torch

from rlhf.model.backbone import REFERENCE, Backbone
from tests.support.small import small_backbone

IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])
ROLES = ("policy", "reward", "value")


def state(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in backbone.model.state_dict().items() if ".lora_" not in k}


@pytest.mark.parametrize("name", ROLES)
def test_gradient_checkpointing_gives_the_same_gradients_in_every_role(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = small_backbone(*ROLES)
        backbone.set_trainable(ROLES)
        if checkpointing:
            backbone.enable_gradient_checkpointing()
        with backbone.role(name):
            loss = backbone.hidden(IDS).square().sum()
        with backbone.role(
            "policy" if name != "policy" else "reward"
        ):  # backward runs while another role is on
            loss.backward()
        gradients.append({k: p.grad for k, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-6, rtol=1e-5)


def test_checkpointing_really_recomputes() -> None:
    backbone = small_backbone("policy")
    backbone.set_trainable(["policy"])
    backbone.enable_gradient_checkpointing()
    calls = []
    backbone.model.get_decoder().layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    with backbone.role("policy"):
        backbone.hidden(IDS).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("name", [REFERENCE, *ROLES])
def test_padding_on_the_right_changes_no_hidden_state(name: str) -> None:
    backbone = small_backbone(*ROLES)
    pad = torch.full((2, 3), 55)
    with backbone.role(name), torch.no_grad():
        padded = backbone.hidden(torch.cat([IDS, pad], 1))
        torch.testing.assert_close(padded[:, :5], backbone.hidden(IDS), atol=1e-5, rtol=1e-4)

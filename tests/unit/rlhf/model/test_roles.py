"""Roles of one base: what entering one changes, and what must never change."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf.model.backbone import REFERENCE, Backbone
from tests.support.small import small_backbone

IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])
ROLES = ("policy", "reward", "value")


def state(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in backbone.model.state_dict().items() if ".lora_" not in k}


def test_a_fresh_adapter_is_the_reference_bitwise() -> None:
    backbone = small_backbone("policy", noisy=False)
    with backbone.role("policy"):
        policy = backbone.hidden(IDS)
    with backbone.role(REFERENCE):
        assert torch.equal(policy, backbone.hidden(IDS))


def test_every_role_is_what_peft_makes_of_that_adapter_alone(tmp_path: Path) -> None:
    backbone = small_backbone(*ROLES)
    for name in ROLES:
        backbone.export_adapter(name, tmp_path / name, task_type="CAUSAL_LM", base_path=backbone.path)
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(backbone.path), str(tmp_path / name)
        )
        plain.eval()
        with backbone.role(name), torch.no_grad():
            ours = backbone.logits(backbone.hidden(IDS))
            torch.testing.assert_close(ours, plain(IDS).logits, atol=1e-5, rtol=1e-5)


def test_entering_a_role_touches_no_requires_grad_flag_and_nests() -> None:
    backbone = small_backbone(*ROLES)
    backbone.set_trainable(["policy", "value"])
    flags = {k: p.requires_grad for k, p in backbone.named_parameters()}
    with torch.no_grad(), backbone.role("policy"):
        outer = backbone.hidden(IDS)
        with backbone.role(REFERENCE):
            inner = backbone.hidden(IDS)
            assert {k: p.requires_grad for k, p in backbone.named_parameters()} == flags
        assert torch.equal(outer, backbone.hidden(IDS))
    assert not torch.allclose(outer, inner)
    with torch.no_grad():
        assert torch.equal(inner, backbone.hidden(IDS))


def test_a_role_gives_gradients_to_its_own_adapter_alone() -> None:
    backbone = small_backbone(*ROLES)
    backbone.set_trainable(["policy", "value"])
    with backbone.role("value"):
        backbone.hidden(IDS).square().sum().backward()
    assert all(p.grad is not None for p in backbone.adapter_parameters("value").values())
    others = [p for k, p in backbone.model.named_parameters() if ".value." not in k]
    assert all(p.grad is None for p in others)


def test_the_base_is_stored_once_whatever_the_number_of_roles() -> None:
    backbone = small_backbone(*ROLES)
    alone = AutoModelForCausalLM.from_pretrained(backbone.path)
    base = {
        p.untyped_storage().data_ptr(): p.numel() for k, p in backbone.named_parameters() if ".lora_" not in k
    }
    assert sum(base.values()) == sum(p.numel() for p in alone.parameters())


def test_training_an_adapter_leaves_base_and_other_adapters_alone() -> None:
    backbone = small_backbone(*ROLES)
    before = state(backbone)
    others = {k: p.clone() for r in ("reward", "value") for k, p in backbone.role_parameters(r).items()}
    optimizer = torch.optim.AdamW(backbone.set_trainable(["policy"]), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        with backbone.role("policy"):
            backbone.hidden(IDS).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in state(backbone).items())
    after = {k: p for r in ("reward", "value") for k, p in backbone.role_parameters(r).items()}
    assert all(torch.equal(others[k], p) for k, p in after.items())


def test_dropout_never_comes_on(tmp_path: Path) -> None:
    backbone = small_backbone("policy")
    backbone.train()
    assert not any(m.training for m in backbone.model.modules())
    with backbone.role("policy"), torch.no_grad():
        assert torch.equal(backbone.hidden(IDS), backbone.hidden(IDS))

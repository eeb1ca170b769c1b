"""The one backbone: roles, gradients, export, and what must never change."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf.errors import UserError
from rlhf.model.adapters import init_head
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.loading import check_model_path
from rlhf.settings.groups import LoraSettings
from tests.small import LORA, perturb, small_backbone

IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])
ROLES = ("policy", "reward", "value")


def state(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in backbone.model.state_dict().items() if ".lora_" not in k}


def test_a_fresh_adapter_is_the_reference_to_the_bit() -> None:
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


def test_an_adapter_survives_export_and_load_to_the_bit(tmp_path: Path) -> None:
    backbone = small_backbone("reward")
    head = backbone.add_head("reward", bias=False)
    init_head(head, seed=1)
    backbone.export_adapter("reward", tmp_path, task_type="SEQ_CLS", base_path="sft/model", head="reward")
    again = small_backbone()
    again.load_adapter("policy", tmp_path)
    originals = backbone.adapter_parameters("reward")
    assert originals
    assert all(torch.equal(p, originals[k]) for k, p in again.adapter_parameters("policy").items())
    assert (
        json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "sft/model"
    )


def test_a_copied_adapter_behaves_like_its_source_and_then_goes_its_own_way() -> None:
    backbone = small_backbone("reward")
    backbone.copy_adapter("reward", "value")
    with torch.no_grad():
        with backbone.role("reward"):
            source = backbone.hidden(IDS)
        with backbone.role("value"):
            assert torch.equal(backbone.hidden(IDS), source)
        perturb(backbone, "value", seed=1)
        with backbone.role("reward"):
            assert torch.equal(backbone.hidden(IDS), source)


def test_merged_export_is_the_policy_and_leaves_the_base_in_memory_alone(tmp_path: Path) -> None:
    backbone = small_backbone("policy")
    before = state(backbone)
    backbone.export_merged("policy", tmp_path)
    assert all(torch.equal(before[k], v) for k, v in state(backbone).items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    with backbone.role("policy"), torch.no_grad():
        torch.testing.assert_close(
            merged(IDS).logits, backbone.logits(backbone.hidden(IDS)), atol=1e-4, rtol=1e-4
        )


def test_dropout_never_comes_on(tmp_path: Path) -> None:
    backbone = small_backbone("policy")
    backbone.train()
    assert not any(m.training for m in backbone.model.modules())
    with backbone.role("policy"), torch.no_grad():
        assert torch.equal(backbone.hidden(IDS), backbone.hidden(IDS))


def test_a_target_module_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"no linear module `query`[\s\S]*q_proj"):
        small_backbone().add_adapter("policy", LoraSettings(target_modules=["query"]), seed=0)


def test_all_linear_leaves_the_output_head_alone() -> None:
    backbone = small_backbone("policy")
    assert not any("lm_head" in k for k in backbone.adapter_parameters("policy"))
    assert {k.split(".")[-3] for k in backbone.adapter_parameters("policy")} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    backbone = small_backbone("policy")
    backbone.export_adapter("policy", tmp_path, task_type="CAUSAL_LM", base_path="x")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(UserError, match="do not fit"):
        small_backbone().load_adapter("policy", tmp_path)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_missing_model_folder_is_not_mistaken_for_a_hub_id(path: str) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        check_model_path(path)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        Backbone.load(tmp_path)


def test_peft_alone_trains_what_we_export(tmp_path: Path) -> None:
    backbone = small_backbone("policy")
    backbone.export_adapter("policy", tmp_path, task_type="CAUSAL_LM", base_path=backbone.path)
    code = (
        "import sys; from peft import AutoPeftModelForCausalLM as A;"
        f"m = A.from_pretrained({str(tmp_path)!r}, is_trainable=True);"
        "print(sum(p.numel() for p in m.parameters() if p.requires_grad), 'rlhf' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    expected = sum(p.numel() for p in backbone.adapter_parameters("policy").values())
    assert done.stdout.split() == [str(expected), "False"]


def test_our_lora_is_pefts_lora() -> None:
    """The same seed and shape trained by PEFT's own wrapper gives the same function."""
    plain = AutoModelForCausalLM.from_pretrained(small_backbone().path).eval()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft = get_peft_model(plain, LoraConfig(r=LORA.rank, lora_alpha=8, target_modules=targets)).eval()
    backbone = small_backbone("policy")
    weights = backbone.adapter_parameters("policy")
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if ".lora_" in key:
                name = key.removeprefix("base_model.model.").replace(".default.", ".")
                parameter.copy_(weights[name])
        with backbone.role("policy"):
            torch.testing.assert_close(
                peft(IDS).logits, backbone.logits(backbone.hidden(IDS)), atol=1e-5, rtol=1e-5
            )


def test_an_exported_adapter_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.small import small_backbone; "
        "small_backbone('policy').export_adapter("
        "'policy', Path('{folder}'), task_type='CAUSAL_LM', base_path='x')"
    )
    files = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        subprocess.run(
            [sys.executable, "-c", code.format(folder=folder)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        files.append((folder / "adapter_config.json").read_bytes())
    assert files[0] == files[1]
    targets = json.loads(files[0])["target_modules"]
    assert targets == sorted(targets)

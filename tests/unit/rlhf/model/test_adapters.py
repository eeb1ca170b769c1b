"""Adapters: where they go, what leaves in a folder and comes back, and what is merged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf.errors import UserError
from rlhf.model.adapters import init_head
from rlhf.model.backbone import Backbone
from rlhf.settings.groups import LoraSettings
from tests.support.small import LORA, perturb, small_backbone

IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])


def state(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in backbone.model.state_dict().items() if ".lora_" not in k}


def test_an_adapter_survives_export_and_load_bitwise(tmp_path: Path) -> None:
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
    backbone.merged("policy").save(tmp_path)
    assert all(torch.equal(before[k], v) for k, v in state(backbone).items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    with backbone.role("policy"), torch.no_grad():
        torch.testing.assert_close(
            merged(IDS).logits, backbone.logits(backbone.hidden(IDS)), atol=1e-4, rtol=1e-4
        )


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
        "from pathlib import Path; from tests.support.small import small_backbone; "
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

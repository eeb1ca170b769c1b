"""Adapters that PEFT has written: read with PEFT's own result, or refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf.errors import UserError
from rlhf.model.stored_adapter import StoredAdapter
from tests.support.small import small_backbone

IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS}
EQUAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilized": {"use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 64, "layers.1.mlp.up_proj": 3}},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "down_proj": 7}},
    "both patterns, rank-stabilized": {
        "rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True
    },
    "some layers": {"layers_to_transform": [0]},
    "one layer": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "excluded modules": {"exclude_modules": ["v_proj"]},
    "a pattern of names": {"target_modules": r".*layers\.1\..*(q|up)_proj"},
    "all linear layers": {"target_modules": "all-linear"},
    "parameters": {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    "transposed, it says": {"fan_in_fan_out": True},
    "dropout": {"lora_dropout": 0.3},
    "gaussian start": {"init_lora_weights": "gaussian"},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["norm"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
    "layer_replication": {"layer_replication": [(0, 2), (1, 2)]},
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
}
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT has something to say of most of these


def write(folder: Path, settings: dict[str, Any]) -> None:
    """An adapter with these settings, every weight of it changed by chance, as PEFT saves it."""
    plain = AutoModelForCausalLM.from_pretrained(small_backbone().path)
    adapted = get_peft_model(plain, LoraConfig(**(PLAIN | settings)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(str(folder))


@pytest.mark.parametrize("name", EQUAL)
def test_an_adapter_of_peft_is_read_copied_and_merged_with_pefts_result(tmp_path: Path, name: str) -> None:
    write(tmp_path, EQUAL[name])
    plain = AutoModelForCausalLM.from_pretrained(small_backbone().path)
    peft = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    backbone = small_backbone()
    backbone.load_adapter("policy", tmp_path)
    backbone.copy_adapter("policy", "value")
    merged = backbone.merged("policy")
    with torch.no_grad():
        expected = peft(IDS).logits
        for role in ("policy", "value"):
            with backbone.role(role):
                found = backbone.logits(backbone.hidden(IDS))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(merged.logits(merged.hidden(IDS)), expected, atol=1e-4, rtol=1e-4)


def test_what_was_read_is_exported_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "first", EQUAL["both patterns, rank-stabilized"])
    backbone = small_backbone()
    backbone.load_adapter("policy", tmp_path / "first")
    backbone.export_adapter("policy", tmp_path / "second", task_type="CAUSAL_LM", base_path=backbone.path)
    logits = []
    for name in ("first", "second"):
        plain = AutoModelForCausalLM.from_pretrained(backbone.path)
        with torch.no_grad():
            logits.append(PeftModel.from_pretrained(plain, str(tmp_path / name)).eval()(IDS).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_does_more_than_lora_on_linear_layers_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path, REFUSED[name])
    with pytest.raises(UserError, match=name):
        small_backbone().load_adapter("policy", tmp_path)


def test_every_setting_that_peft_has_or_will_have_is_read_or_refused(tmp_path: Path) -> None:
    """A value that no default has, in each field of the installed PEFT, and in one that it does not know."""
    write(tmp_path, {})
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    equal = {key for settings in EQUAL.values() for key in settings}
    changes_nothing = {
        *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "megatron_core", "qalora_group_size"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    }
    names = {field.name for field in dataclasses.fields(LoraConfig)} | {"use_something_new"}
    for name in sorted(names - equal - changes_nothing - {"r", "lora_alpha"}):
        file.write_text(json.dumps(config | {name: "planted"}))
        with pytest.raises(UserError, match=name):
            StoredAdapter.read(tmp_path)


def test_another_kind_of_adapter_is_named(tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(small_backbone().path)
    settings = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(plain, settings).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="IA3 adapter"):
        small_backbone().load_adapter("policy", tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", '{"peft_type": "LORA", "r": "four"}'])
def test_a_damaged_configuration_is_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path, {})
    (tmp_path / "adapter_config.json").write_text(damage)
    with pytest.raises(UserError):
        small_backbone().load_adapter("policy", tmp_path)

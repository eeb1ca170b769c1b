"""Adapters on models whose modules are called as adapters are, and on mixtures of experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    Qwen3NextConfig,
)

from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.settings.groups import LoraSettings
from tests.support.small import LORA, perturb, word_tokenizer

IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])
SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip
EXPERTS: dict[str, Callable[[], Any]] = {
    "deepseek_v2": lambda: DeepseekV2Config(**(SIZES | LATENT)),
    "deepseek_v3": lambda: DeepseekV3Config(**(SIZES | LATENT)),
    "glm4_moe": lambda: Glm4MoeConfig(
        **SIZES, num_key_value_heads=2, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1,
    ),
    "qwen3_next": lambda: Qwen3NextConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, num_experts=4, num_experts_per_tok=2, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
}  # fmt: skip


def made(folder: Path, config: Any, dtype: torch.dtype = torch.float32) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return Backbone.load(folder)


def with_roles(folder: Path) -> Backbone:
    """A decoder whose attention has modules called `query`, `key` and `value`, with three adapters."""
    backbone = made(folder, BertConfig(**SIZES, is_decoder=True, initializer_range=0.2))
    for seed, name in enumerate(("reward", "value", "policy", "query")):
        backbone.add_adapter(name, LORA, seed=seed)
        perturb(backbone, name, seed=10 + seed)
    return backbone


def logits(backbone: Backbone, role: str) -> torch.Tensor:
    with backbone.role(role), torch.no_grad():
        return backbone.logits(backbone.hidden(IDS))


def test_an_adapter_called_as_a_module_of_the_base_has_its_own_parameters_and_no_others(
    tmp_path: Path,
) -> None:
    backbone = with_roles(tmp_path)
    found = [backbone.adapter_parameters(name) for name in ("reward", "value", "policy", "query")]
    assert found[0].keys() == found[1].keys() == found[2].keys() == found[3].keys()
    assert any(".self.value.lora_A.weight" in name for name in found[0])
    ids = [id(parameter) for parameters in found for parameter in parameters.values()]
    assert len(set(ids)) == len(ids)
    everything = [p for name, p in backbone.model.named_parameters() if ".lora_" in name]
    assert len(everything) == len(ids)
    trained = backbone.set_trainable(["value"])
    assert {id(p) for p in trained} == {id(p) for p in found[1].values()}
    assert not any(p.requires_grad for p in (*found[0].values(), *found[2].values(), *found[3].values()))


@pytest.mark.parametrize("name", ["policy", "value", "query"])
def test_such_an_adapter_survives_export_load_and_copy(tmp_path: Path, name: str) -> None:
    backbone = with_roles(tmp_path / "base")
    backbone.export_adapter(name, tmp_path / "out", task_type="CAUSAL_LM", base_path=backbone.path)
    expected = logits(backbone, name)
    again = with_roles(tmp_path / "base2")
    again.load_adapter("again", tmp_path / "out")
    assert torch.equal(logits(again, "again"), expected)
    again.copy_adapter("again", "key")
    assert torch.equal(logits(again, "key"), expected)
    merged = backbone.merged(name)
    torch.testing.assert_close(merged.logits(merged.hidden(IDS)).detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The following")  # PEFT's own loading says so
@pytest.mark.parametrize("name", EXPERTS)
def test_adapters_on_experts_are_merged_exported_and_read_back(tmp_path: Path, name: str) -> None:
    backbone = made(tmp_path / "base", EXPERTS[name]())
    for seed, role in enumerate(("policy", "value")):
        backbone.add_adapter(role, LORA, seed=seed)
        perturb(backbone, role, seed=10 + seed)
    expected = logits(backbone, "policy")
    assert float((expected - logits(backbone, "reference")).abs().max()) > 0.05
    merged = backbone.merged("policy")
    merged.save(tmp_path / "merged")
    for model in (merged, Backbone.load(tmp_path / "merged")):
        torch.testing.assert_close(logits(model, "reference"), expected, atol=1e-4, rtol=1e-4)
    backbone.export_adapter("policy", tmp_path / "out", task_type="CAUSAL_LM", base_path="x")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        found = PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()(IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    again = Backbone.load(tmp_path / "base")
    again.load_adapter("policy", tmp_path / "out")
    assert torch.equal(logits(again, "policy"), expected)


def test_a_merge_into_bf16_experts_is_near_the_policy(tmp_path: Path) -> None:
    backbone = made(tmp_path, EXPERTS["deepseek_v3"](), torch.bfloat16)
    backbone.add_adapter("policy", LORA, seed=0)
    perturb(backbone, "policy", seed=1)
    merged = backbone.merged("policy")
    assert {parameter.dtype for parameter in merged.model.parameters()} <= {torch.bfloat16, torch.float32}
    difference = merged.logits(merged.hidden(IDS)).detach() - logits(backbone, "policy")
    assert float(difference.abs().mean()) < 0.02


def test_linear_layers_in_lists_are_named_with_the_list(tmp_path: Path) -> None:
    backbone = made(tmp_path, BertConfig(**SIZES, is_decoder=True))
    layer: Any = backbone.layers[0]
    layer.intermediate.dense = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Identity())
    again = Backbone(backbone.model, backbone.tokenizer, "")
    again.add_adapter("policy", LoraSettings(target_modules=["dense.0"]), seed=0)
    assert {name.rpartition(".lora_")[0] for name in again.adapter_parameters("policy")} == {
        "bert.encoder.layer.0.intermediate.dense.0"
    }
    with pytest.raises(UserError, match=r"dense\.0"):
        again.add_adapter("value", LoraSettings(target_modules=["0"]), seed=0)

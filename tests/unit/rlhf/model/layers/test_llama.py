"""Fused layers against the layers of transformers: outputs, gradients, packing, and who is left alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf.model.backbone import Backbone
from rlhf.model.batching import TokenBatch
from rlhf.model.layers import llama as fused
from rlhf.model.layers.router import replace_forward
from rlhf.model.layers.varlen import attend
from rlhf.settings.groups import LoraSettings
from tests.support.small import small_backbone, word_tokenizer, write_small_model

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
LENGTHS = [5, 9, 1, 12, 12, 7, 30]


def ids_of(lengths: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(4, 60, (len(lengths), max(lengths)), generator=generator)


def llama(**changes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **changes}))


def qwen2() -> PreTrainedModel:
    """Biases on queries, keys and values."""
    model = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "num_key_value_heads": 4}))
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias"):
            torch.nn.init.normal_(parameter)
    return model


def backbone_of(
    model: PreTrainedModel, tmp_path: Path, *, targets: str | list[str] = "all-linear", top: int | None = None
) -> Backbone:
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    backbone = Backbone.load(tmp_path)
    backbone.add_adapter(
        "policy", LoraSettings(rank=3, alpha=5.0, target_modules=targets, top_layers=top), seed=1
    )
    generator = torch.Generator().manual_seed(5)
    for parameter in backbone.adapter_parameters("policy").values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return backbone


def plain(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all layers run in their own form from here on."""
    monkeypatch.setattr(backbone.fused, "can_run", lambda: False)


def states_and_gradients(
    backbone: Backbone, lengths: list[int], role: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """States of the real tokens, and the gradients of a function of them."""
    backbone.zero_grad(set_to_none=True)
    backbone.set_trainable(["policy"])
    ids_BL, lengths_B = ids_of(lengths), torch.tensor(lengths)
    with backbone.role(role):
        hidden_BLH = backbone.hidden(TokenBatch(ids_BL, lengths_B))
    real_NH = hidden_BLH[torch.arange(max(lengths)) < lengths_B[:, None]]
    if role != "reference":
        (real_NH * torch.linspace(-1, 1, real_NH.shape[1])).square().sum().backward()
    grads = {k: p.grad.clone() for k, p in backbone.named_parameters() if p.grad is not None}
    return real_NH.detach(), grads


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-5, rtol=1e-4)
    assert ours[1].keys() == theirs[1].keys()
    for key, gradient in theirs[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[1][key], gradient, atol=2e-5 * max(scale, 1e-3), rtol=1e-3)


@pytest.mark.parametrize("make", [llama, qwen2])
@pytest.mark.parametrize("role", ["reference", "policy"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["gate_proj"]])
@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6], [200, 150]])
def test_states_and_gradients_are_those_of_transformers(
    make: Callable[[], PreTrainedModel],
    role: str,
    targets: str | list[str],
    lengths: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    backbone = backbone_of(make(), tmp_path, targets=targets)
    assert backbone.fused.can_run()
    ours = states_and_gradients(backbone, lengths, role)
    plain(backbone, monkeypatch)
    assert_same(ours, states_and_gradients(backbone, lengths, role))


@pytest.mark.parametrize("top", [None, 1])
def test_checkpointing_runs_layers_twice_and_changes_nothing(
    top: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    backbone = backbone_of(llama(), tmp_path, top=top)
    before = states_and_gradients(backbone, LENGTHS, "policy")
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return attend(*args, **kwargs)

    monkeypatch.setattr(fused, "attend", counted)
    states_and_gradients(backbone, LENGTHS, "policy")
    assert len(calls) == 3
    backbone.enable_gradient_checkpointing()
    assert_same(states_and_gradients(backbone, LENGTHS, "policy"), before)
    assert len(calls) > 6


def test_only_wanted_states_are_made_and_they_are_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = backbone_of(llama(), tmp_path, top=2)
    ids_BL, lengths_B = ids_of(LENGTHS), torch.tensor(LENGTHS)
    wanted_M = torch.arange(len(LENGTHS)) * max(LENGTHS) + lengths_B - 1
    trunk_BLH = backbone.run_trunk(TokenBatch(ids_BL, lengths_B))
    with backbone.role("policy"), torch.no_grad():
        all_BLH = backbone.hidden(TokenBatch(ids_BL, lengths_B))
        some_MH = backbone.hidden(TokenBatch(ids_BL, lengths_B), wanted_M=wanted_M, trunk_BLH=trunk_BLH)
    torch.testing.assert_close(some_MH, all_BLH.flatten(0, 1)[wanted_M], atol=1e-5, rtol=1e-5)


def test_a_fresh_adapter_is_the_reference_in_the_fused_form() -> None:
    backbone = small_backbone("policy", noisy=False)
    assert backbone.fused.can_run()
    ids = ids_of(LENGTHS).clamp(max=50)
    with torch.no_grad():
        reference = backbone.hidden(TokenBatch(ids, torch.tensor(LENGTHS)))
        with backbone.role("policy"):
            fresh = backbone.hidden(TokenBatch(ids, torch.tensor(LENGTHS)))
    torch.testing.assert_close(fresh, reference, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8, num_key_value_heads=4)),
        lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, num_key_value_heads=4)),
        lambda: llama(hidden_act="gelu"),
    ],
    ids=["gemma", "qwen3", "gelu"],
)
def test_other_layers_run_in_their_own_form(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make().eval()
    backbone = backbone_of(model, tmp_path)
    assert not backbone.fused.can_run()
    ids = ids_of([6, 6])
    with torch.no_grad():
        theirs = model.get_decoder()(input_ids=ids).last_hidden_state
        torch.testing.assert_close(backbone.hidden(ids), theirs, atol=1e-5, rtol=1e-4)


def test_hooks_on_a_layer_s_modules_fire(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = backbone_of(llama(), tmp_path)
    calls: list[int] = []
    projection = backbone.model.get_decoder().layers[1].self_attn.q_proj
    handle = projection.register_forward_hook(lambda *_: calls.append(1))
    backbone.hidden(ids_of([4]))
    assert calls == [1]
    handle.remove()
    assert backbone.fused.can_run()


def test_only_fp32_is_fused(tmp_path: Path) -> None:
    write_small_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert Backbone(model, tokenizer, str(tmp_path)).fused.can_run() == (dtype == torch.float32)


def test_one_layer_that_differs_keeps_all_from_being_fused() -> None:
    torch.manual_seed(0)
    model = llama()
    layer = model.get_decoder().layers[2]
    own = layer.forward
    replace_forward(layer, lambda *args, **kwargs: own(*args, **kwargs) * 2)
    assert not Backbone(model, word_tokenizer(), "").fused.can_run()

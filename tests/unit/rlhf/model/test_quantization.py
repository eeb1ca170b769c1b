"""A quantized base: the same roles, gradients and exports, and what must never depend on the batch."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.settings.groups import ModelSettings, Precision
from tests.support.small import LORA, perturb, small_backbone, word_tokenizer

pytest.importorskip("bitsandbytes")

QUANTIZED: tuple[Precision, ...] = ("int8", "nf4")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", *QUANTIZED)
IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])


def quantized_layers(backbone: Backbone) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in backbone.model.named_modules()
        if type(module).__module__.startswith("bitsandbytes")
    }


def full_weight(layer: nn.Module) -> Tensor:
    """What a quantized layer multiplies with, as bitsandbytes itself reads it back."""
    from peft.utils.integrations import dequantize_bnb_weight

    assert isinstance(layer.weight, nn.Parameter)
    weight: Tensor = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    return weight.float()


def dequantized(backbone: Backbone) -> Backbone:
    """A plain fp32 backbone of the same weights."""
    plain = Backbone.load(backbone.path)
    modules = dict(plain.model.named_modules())
    with torch.no_grad():
        for name, layer in quantized_layers(backbone).items():
            target = modules[name.removesuffix(".base_layer")].weight
            assert isinstance(target, Tensor)
            target.copy_(full_weight(layer))
    return plain


def gradients(backbone: Backbone, role: str) -> dict[str, Tensor]:
    backbone.set_trainable([role])
    backbone.zero_grad()
    with backbone.role(role):
        backbone.hidden(IDS).square().sum().backward()
    return {k: p.grad.clone() for k, p in backbone.adapter_parameters(role).items() if p.grad is not None}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_every_linear_layer_but_the_output_head_is_quantized_and_nothing_else(precision: Precision) -> None:
    backbone = small_backbone(precision=precision)
    assert len(quantized_layers(backbone)) == 2 * 7
    assert {p.dtype for p in backbone.parameters()} == {
        torch.float32, torch.int8 if precision == "int8" else torch.uint8
    }  # fmt: skip
    assert not any("head" in name or "embed" in name for name in quantized_layers(backbone))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_quantized_base_computes_in_fp32_with_its_rounded_weights(precision: Precision) -> None:
    backbone = small_backbone("policy", precision=precision)
    plain = dequantized(backbone)
    plain.add_adapter("policy", LORA, seed=100)
    perturb(plain, "policy", seed=200)
    for role in (REFERENCE, "policy"):
        with torch.no_grad(), backbone.role(role), plain.role(role):
            torch.testing.assert_close(backbone.hidden(IDS), plain.hidden(IDS), atol=1e-4, rtol=1e-4)
    ours, theirs = gradients(backbone, "policy"), gradients(plain, "policy")
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_adapters_on_a_quantized_base_are_fp32_and_start_as_the_base(precision: Precision) -> None:
    backbone = small_backbone("policy", "value", noisy=False, precision=precision)
    assert {p.dtype for p in backbone.adapter_parameters("policy").values()} == {torch.float32}
    assert not any(layer.training for layer in quantized_layers(backbone).values())
    with torch.no_grad(), backbone.role(REFERENCE):
        reference = backbone.hidden(IDS)
    for role in ("policy", "value"):
        with torch.no_grad(), backbone.role(role):
            assert torch.equal(backbone.hidden(IDS), reference)
    assert set(gradients(backbone, "policy")) == set(backbone.adapter_parameters("policy"))
    assert all(p.grad is None for p in backbone.adapter_parameters("value").values())


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("name", ["policy", "reward", "value"])
def test_checkpointing_gives_the_same_gradients_in_every_role(precision: Precision, name: str) -> None:
    found = []
    for switched_on in (False, True):
        backbone = small_backbone("policy", "reward", "value", precision=precision)
        if switched_on:
            backbone.enable_gradient_checkpointing()
        found.append(gradients(backbone, name))
    assert found[0].keys() == found[1].keys()
    for key in found[0]:
        torch.testing.assert_close(found[0][key], found[1][key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_nothing_of_full_precision_is_kept_for_the_backward_pass(precision: Precision) -> None:
    backbone = small_backbone("policy", precision=precision)
    backbone.set_trainable(["policy"])
    shapes = {tuple(full_weight(layer).shape) for layer in quantized_layers(backbone).values()}
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            kept.append(tuple(tensor.shape))
        return tensor

    with backbone.role("policy"), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        backbone.hidden(IDS).square().sum()
    assert kept
    assert not shapes & set(kept)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_is_the_same_alone_and_among_batch_mates(precision: Precision) -> None:
    backbone = small_backbone("policy", precision=precision)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 60, (9, 12), generator=generator)
    lengths = [3, 12, 5, 12, 1, 7, 12, 2, 9]
    tolerance = 0.1 if precision == "bf16" else 1e-5
    with torch.no_grad(), backbone.role("policy"):
        together = backbone.logits(backbone.hidden(ids)).log_softmax(-1)
        for row, length in enumerate(lengths):
            alone = backbone.logits(backbone.hidden(ids[row : row + 1, :length])[0, -1]).log_softmax(-1)
            torch.testing.assert_close(alone, together[row, length - 1], atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_an_adapter_is_exported_in_the_same_form_whatever_the_base(
    precision: Precision, tmp_path: Path
) -> None:
    for name in (precision, "fp32"):
        backbone = small_backbone("policy", precision=name)
        backbone.export_adapter("policy", tmp_path / name, task_type="CAUSAL_LM", base_path="base")
    files = ("adapter_config.json", "adapter_model.safetensors")
    one, two = (load_file(tmp_path / name / files[1]) for name in (precision, "fp32"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / precision / files[0]).read_text() == (tmp_path / "fp32" / files[0]).read_text()
    loaded = small_backbone(precision=precision)
    loaded.load_adapter("policy", tmp_path / "fp32")
    backbone = small_backbone("policy", precision=precision)
    with torch.no_grad(), backbone.role("policy"), loaded.role("policy"):
        assert torch.equal(backbone.hidden(IDS), loaded.hidden(IDS))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_merging_adds_the_adapter_to_the_full_precision_weights(precision: Precision, tmp_path: Path) -> None:
    small_backbone("policy", precision=precision).merged("policy").save(tmp_path / precision)
    small_backbone("policy").merged("policy").save(tmp_path / "fp32")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in (precision, "fp32"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / precision).dtype == torch.float32


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_base_with_transposed_weights_works_and_exports_alike(precision: Precision, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 60}
    with torch.random.fork_rng():
        GPT2LMHeadModel(GPT2Config(initializer_range=0.2, **sizes)).save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    exported = {}
    for name in (precision, "fp32"):
        settings = ModelSettings(path=str(tmp_path / "base"), precision=name)
        backbone = Backbone.load(tmp_path / "base", settings=settings)
        backbone.add_adapter("policy", LORA, seed=1)
        perturb(backbone, "policy", seed=2)
        backbone.export_adapter("policy", tmp_path / name, task_type="CAUSAL_LM", base_path="base")
        backbone.merged("policy").save(tmp_path / f"{name}-merged")
        exported[name] = (
            (tmp_path / name / "adapter_config.json").read_text(),
            load_file(tmp_path / f"{name}-merged" / "model.safetensors"),
        )
        with torch.no_grad(), backbone.role("policy"):
            assert backbone.hidden(IDS).isfinite().all()
    assert exported[precision][0] == exported["fp32"][0]
    for key, tensor in exported["fp32"][1].items():
        torch.testing.assert_close(exported[precision][1][key], tensor)


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.27), ("nf4", 0.16)])
def test_the_quantized_layers_take_their_share_of_the_memory(precision: Precision, share: float) -> None:
    """8 or 4 bits of 32 a weight, and the scales, which count for much on matrices as small as these."""

    def storage(backbone: Backbone) -> int:
        found: dict[int, int] = {}
        for layer in backbone.model.model.layers:
            for tensor in layer.state_dict().values():
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return sum(found.values())

    small = small_backbone(precision=precision)
    with torch.no_grad():
        small.hidden(IDS)
    tables = 0 if precision == "int8" else 14 * (16 + 256) * 4  # code books, the same size for any layer
    assert storage(small) - tables < (share + 0.06) * storage(small_backbone())


def test_without_bitsandbytes_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(UserError, match=r"needs bitsandbytes[\s\S]*pip install"):
        small_backbone(precision="nf4")


@pytest.mark.parametrize("base", PRECISIONS)
def test_a_small_learning_rate_moves_fp32_adapters_and_would_not_move_bf16_ones(base: Precision) -> None:
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        backbone = small_backbone("policy", precision=base)
        parameters = backbone.set_trainable(["policy"])
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype)
        before = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)
        for _ in range(10):
            optimizer.zero_grad()
            with backbone.role("policy"):
                backbone.hidden(IDS).square().sum().backward()
            optimizer.step()
        changed = [(p.detach() != old).float().mean() for p, old in zip(parameters, before, strict=True)]
        moved[dtype] = float(torch.stack(changed).mean())
    assert moved[torch.float32] > 0.99
    assert moved[torch.bfloat16] < 0.1

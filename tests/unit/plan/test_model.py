"""Sizes of a model that is never made, against real ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from plan.model import Sketch
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.settings.groups import LoraSettings, ModelSettings, Precision, ScratchSettings
from sft import scratch
from tests.support.small import word_tokenizer, write_small_model

SIZES: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3}
CONFIGS = [
    LlamaConfig(**SIZES, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2),
    LlamaConfig(**SIZES, intermediate_size=96, num_attention_heads=4, tie_word_embeddings=True),
    Qwen2Config(**SIZES, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2),
    GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4),
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=["llama", "tied", "qwen2", "gpt2"])


def written(config: Any, folder: Path) -> Path:
    config.save_pretrained(folder)
    return folder


def sketch_of(folder: Path, precision: Precision = "fp32", **settings: Any) -> Sketch:
    return Sketch.of(ModelSettings(path=str(folder), precision=precision, **settings), on_cuda=False)


@each_config
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parameters_and_bytes_are_those_of_the_real_model(
    config: Any, precision: Precision, tmp_path: Path
) -> None:
    sketch = sketch_of(written(config, tmp_path), precision)
    real = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16 if precision == "bf16" else torch.float32
    )
    assert sketch.num_parameters == sum(p.numel() for p in real.parameters())
    stored = {t.untyped_storage().data_ptr(): t for t in (*real.parameters(), *real.buffers())}
    assert sketch.base_bytes == sum(t.numel() * t.element_size() for t in stored.values())


@each_config
@pytest.mark.parametrize("top_layers", [None, 2])
def test_adapter_parameters_are_those_that_the_backbone_adds(
    config: Any, top_layers: int | None, tmp_path: Path
) -> None:
    sketch = sketch_of(written(config, tmp_path))
    real = Backbone(AutoModelForCausalLM.from_config(config), word_tokenizer(), "")
    targets = ["c_attn"] if config.model_type == "gpt2" else ["q_proj", "down_proj"]
    for name, wanted in (("all", "all-linear"), ("some", targets), ("one", targets[0])):
        lora = LoraSettings(rank=4, target_modules=wanted, top_layers=top_layers)
        real.add_adapter(name, lora, seed=0)
        assert sketch.adapter_parameters(lora, stage="ppo") == sum(
            p.numel() for p in real.role_parameters(name).values()
        )


def test_a_model_from_nothing_has_the_sizes_that_sft_gives_it() -> None:
    sizes = ScratchSettings(vocab_size=300)
    tokenizer = scratch.train_tokenizer(["some words"], sizes)
    real = scratch.new_model(sizes, tokenizer, seed=0)
    settings = ModelSettings(scratch=sizes.model_copy(update={"vocab_size": len(tokenizer)}))
    sketch = Sketch.of(settings, on_cuda=False)
    assert sketch.num_parameters == real.num_parameters()
    assert (sketch.context, sketch.hidden_size) == (sizes.max_length, sizes.hidden_size)


def test_quantized_bytes_by_hand(tmp_path: Path) -> None:
    folder = written(CONFIGS[0], tmp_path)
    plain, int8, nf4 = (sketch_of(folder, p) for p in ("fp32", "int8", "nf4"))
    outputs = 3 * (64 + 32 + 32 + 64 + 96 + 96 + 64)
    linear = 3 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)
    assert plain.base_bytes - int8.base_bytes == 3 * linear - 4 * outputs
    blocks = linear // 64
    scales = 3 * 2 * 4  # k and v have 32 blocks, which are one group
    scales += 3 * 5 * 4  # q, o and the three of the MLP have 64 to 96, which are one group each
    assert plain.base_bytes - nf4.base_bytes == 4 * linear - (linear // 2 + blocks + scales)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantized_bytes_are_those_that_bitsandbytes_holds(precision: Precision, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    write_small_model(tmp_path)
    settings = ModelSettings(path=str(tmp_path), precision=precision)
    real, held = Backbone.load(tmp_path, settings=settings).model, 0
    for module in real.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            held += tensor.numel() * tensor.element_size()
            if (state := getattr(tensor, "quant_state", None)) is not None:
                held += state.absmax.numel() + 4 * state.state2.absmax.numel()
            if (scales := getattr(tensor, "SCB", None)) is not None:
                held += 4 * scales.numel()
    assert Sketch.of(settings, on_cuda=False).base_bytes == held


def test_nf4_comes_to_half_a_byte_and_a_little_for_large_layers(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=4096, intermediate_size=14336, num_hidden_layers=1, num_attention_heads=32
    )
    sketch = sketch_of(written(config, tmp_path), "nf4")
    assert sketch.base_bytes / sketch.num_parameters == pytest.approx(0.516, abs=1e-3)


def test_what_is_not_quantized_is_in_the_compute_type(tmp_path: Path) -> None:
    settings = ModelSettings(path=str(written(CONFIGS[0], tmp_path)), precision="nf4")
    cpu, cuda = (Sketch.of(settings, on_cuda=on_cuda) for on_cuda in (False, True))
    others = 2 * 300 * 64 + 7 * 64
    assert cpu.base_bytes - cuda.base_bytes == 2 * others


def test_what_cannot_be_planned_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        sketch_of(tmp_path)
    with pytest.raises(UserError, match="no such model folder"):
        sketch_of(tmp_path / "missing")
    folder = written(CONFIGS[0], tmp_path)
    with pytest.raises(UserError, match="no linear module `c_attn`"):
        sketch_of(folder).adapter_parameters(LoraSettings(target_modules="c_attn"), stage="ppo")
    with pytest.raises(UserError, match="cannot be on the top 4"):
        sketch_of(folder).adapter_parameters(LoraSettings(top_layers=4), stage="ppo")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="no causal language model that can be built"):
        sketch_of(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -2},
        {"hidden_size": "big"},
        {"model_type": "t5"},
        {"model_type": "no such type"},
    ],
    ids=str,
)
def test_sizes_that_contradict_each_other_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    file = written(CONFIGS[0], tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(UserError, match="can be built") as caught:
        sketch_of(tmp_path)
    assert len(str(caught.value)) < 600

"""What is read off a model of any architecture."""

from typing import Any

import pytest
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
)

from rlhf.model.architecture import (
    context_length,
    decoder_layers,
    has_conv1d,
    has_plain_cache,
    linear_modules,
)

LLAMA = LlamaConfig(
    vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=77,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=55)


def built(config: PretrainedConfig) -> Any:
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("config", "length"), [(LLAMA, 77), (GPT2, 55), (BloomConfig(), 2**31)], ids=["llama", "gpt2", "bloom"]
)
def test_the_context_is_what_the_config_says_or_has_no_end(config: PretrainedConfig, length: int) -> None:
    assert context_length(config) == length


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_layers_are_found_in_order_and_linear_modules_without_the_head(config: PretrainedConfig) -> None:
    model = built(config)
    layers = decoder_layers(model)
    names = {module: name for name, module in model.named_modules()}
    assert [names[layer].rpartition(".")[2] for layer in layers] == ["0", "1", "2"]
    found = linear_modules(model)
    assert model.get_output_embeddings() not in found.values()
    assert len(found) == sum(len(linear_modules(model, layer)) for layer in layers)
    assert has_conv1d(model) == (config is GPT2)
    assert any(isinstance(module, nn.Linear) for module in found.values()) == (config is LLAMA)


def test_a_cache_with_a_window_is_not_plain() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    }
    for window in (None, 8):
        config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=window)
        assert has_plain_cache(built(config), 2) == (window is None)

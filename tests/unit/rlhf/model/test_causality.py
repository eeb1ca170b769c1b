"""Models that see what comes after a token are refused as policies, by what they do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    ElectraConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
    RobertaConfig,
)

from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.causality import check_causal
from rlhf.settings.groups import ModelSettings
from sft.model import start
from tests.support.small import word_tokenizer
from tests.unit.sft.demos import sft_settings

SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}


def turned(config: Any) -> Any:
    config.is_causal = False
    return config


BOTH_WAYS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "electra": ElectraConfig(**SIZES, embedding_size=32),
    "llama, is_causal off": turned(LlamaConfig(**GROUPED)),
    "qwen3, is_causal off": turned(Qwen3Config(**GROUPED)),
    "gemma3, bidirectional": Gemma3TextConfig(**GROUPED, use_bidirectional_attention=True),
}
ONE_WAY = {
    "bert decoder": BertConfig(**SIZES, is_decoder=True),
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "llama": LlamaConfig(**GROUPED),
    "gemma3": Gemma3TextConfig(**GROUPED),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=4),
}


def made(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_a_model_that_sees_later_tokens_is_refused_in_any_precision(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match="no causal language model"):
        check_causal(made(BOTH_WAYS[name], dtype), where="here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ONE_WAY)
def test_a_model_that_reads_from_left_to_right_is_taken(name: str, dtype: torch.dtype) -> None:
    check_causal(made(ONE_WAY[name], dtype), where="here")


@pytest.mark.parametrize("name", ["bert", "qwen3, is_causal off"])
def test_every_stage_refuses_an_encoder_when_it_loads_it(tmp_path: Path, name: str) -> None:
    made(BOTH_WAYS[name]).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"(is_decoder|is_causal): False"):
        start(ModelSettings(path=str(tmp_path)), sft_settings(method="none"), texts=[], seed=0)
    with pytest.raises(UserError, match=r"(is_decoder|is_causal): False"):
        Backbone.load(tmp_path)

"""Tiny random models of many architectures, whose predictions are far from uniform."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_MAMBA: dict[str, Any] = {"state_size": 4, "time_step_rank": 4, "conv_kernel": 4}
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4,
}  # fmt: skip
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "qk_rope_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_DELTA_NET: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "head_dim": 8,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1], "num_hidden_layers": 3},
    "bert": {"is_decoder": True},
    "biogpt": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**_GPT2, "rotary_dim": 4},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 6, "head_dim": 8},
    "deepseek_v2": _MLA,
    "deepseek_v3": {**_MLA, "n_group": 2},
    "exaone4": {"sliding_window": 6},
    "falcon": {"num_kv_heads": 4},
    "falcon_h1": {**_MAMBA2, "mamba_n_heads": 4, "mamba_d_ssm": 32, "head_dim": 8, "lm_head_multiplier": 0.3},
    "falcon_mamba": _MAMBA,
    "gemma": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 6, "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "glm4": {"head_dim": 8},
    "gpt2": _GPT2,
    "gpt_neo": {
        "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6,
    },
    "gpt_neox": {},
    "gpt_oss": {"head_dim": 8, "sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gptj": {**_GPT2, "rotary_dim": 4},
    "granite": {"logits_scaling": 6.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.7},
    "granitemoehybrid": {
        **_MAMBA2, "layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1,
        "shared_intermediate_size": 32, "logits_scaling": 3.0,
    },
    "hyperclovax": {"logits_scaling": 6.0, "head_dim": 8},
    "jamba": {
        "num_hidden_layers": 4, "mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2,
        "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama": {},
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2},
    "mamba": _MAMBA,
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "mistral": {"sliding_window": 6, "head_dim": 8},
    "mixtral": {"head_dim": 8, "num_local_experts": 4},
    "modernbert-decoder": {"local_attention": 6},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2},
    "nanochat": {},
    "nemotron": {},
    "olmo2": {},
    "olmo_hybrid": _DELTA_NET,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_5_text": _DELTA_NET,
    "qwen3_moe": {**_EXPERTS, "head_dim": 8},
    "qwen3_next": {**_DELTA_NET, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "trocr": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    "vaultgemma": {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 6},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
}  # fmt: skip
"""What a small model of each type is made with, besides `SIZES`."""


def tiny_model(model_type: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A random model of this type, with weights far from those that training begins with."""
    config = CONFIG_MAPPING[model_type](**{**SIZES, **ARCHITECTURES.get(model_type, {}), **changes})
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which would do nothing
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model

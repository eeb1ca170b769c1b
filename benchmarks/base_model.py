"""Random Llama models whose responses have a wanted distribution of lengths.

Random weights end a response anywhere. Here the first coordinate of the residual stream is the same for every
token: the embedding sets it, and no block writes to it. A row of the output head that reads this coordinate
alone is a bias, and so EOS gets a fixed probability at every position, while padding and the other special
tokens get none. Both racers load the same weights, and the trick costs neither of them anything.

At the end stands what is asked of any base and of the adapters on it.
"""

from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from benchmarks.workloads import Shape
from rlhf.model.backbone import Backbone
from rlhf.model.loading import quiet_transformers

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)
_NEVER_NATS = 30.0
"""A token this many nats below all others together is drawn once in 10¹³ draws."""
_NOISE = 0.02
"""Standard deviation of the noise that gives a new adapter an effect."""


def write_base_model(folder: Path, shape: Shape, *, eos_hazard: float, seed: int = 0) -> None:
    """Save the model, its tokenizer (one token a word, `w0`, `w1`, …) and generation settings."""
    quiet_transformers()
    config = llama_config(shape, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        texts_BL = torch.randint(len(SPECIALS), shape.vocab_size, (32, 48))
    with torch.no_grad():
        _make_bias_coordinate(model)
        _set_eos_hazard(model, texts_BL, eos_hazard)
    model.save_pretrained(folder)
    word_tokenizer(shape.vocab_size).save_pretrained(folder)


def llama_config(shape: Shape, **others: Any) -> LlamaConfig:
    """The configuration of a Llama whose output head is not its embedding."""
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads or shape.num_heads,
        max_position_embeddings=shape.max_length,
        tie_word_embeddings=False,
        **others,
    )


def word_tokenizer(vocab_size: int, *, eos_last: bool = False) -> PreTrainedTokenizerFast:
    """One token a word, the special tokens first; with `eos_last`, EOS is an id that no row of a head has."""
    first = [token for token in SPECIALS if not (eos_last and token == "<eos>")]
    words = first + [f"w{i}" for i in range(vocab_size - len(first))] + ["<eos>"] * eos_last
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _make_bias_coordinate(model: LlamaForCausalLM) -> None:
    """The first coordinate holds half the embedding's energy, and only the rows of special tokens read it."""
    embedding = model.model.embed_tokens.weight
    head = model.lm_head.weight
    embedding[:, 0] = embedding[:, 1:].norm(dim=1).mean()
    for layer in cast(list[LlamaDecoderLayer], model.model.layers):
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    head[:, 0] = 0
    head[: len(SPECIALS)] = 0


def _set_eos_hazard(model: LlamaForCausalLM, texts_BL: Tensor, hazard: float) -> None:
    hidden_NH = model.model(texts_BL).last_hidden_state.flatten(0, 1)
    head = model.lm_head.weight
    bias_N = hidden_NH[:, 0]
    others_N = torch.logsumexp((hidden_NH @ head.T)[:, len(SPECIALS) :], dim=1)
    head[: len(SPECIALS), 0] = ((others_N - _NEVER_NATS) / bias_N).min()
    if hazard > 0:
        low = -100.0
        high = 100.0
        for _ in range(60):
            middle = (low + high) / 2
            mean = float(torch.sigmoid(middle * bias_N - others_N).mean())
            low, high = (middle, high) if mean < hazard else (low, middle)
        head[EOS, 0] = (low + high) / 2


def perturb(backbone: Backbone, role: str, generator: torch.Generator) -> None:
    """Add noise to a new adapter, which would otherwise have no effect."""
    with torch.no_grad():
        for parameter in backbone.adapter_parameters(role).values():
            # Drawn on the CPU: the same on every device.
            noise = torch.randn(parameter.shape, generator=generator) * _NOISE
            parameter.add_(noise.to(parameter.device))


def base_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Everything that the base holds, its quantization's scales included, by name."""
    state = backbone.model.state_dict()
    return {k: v for k, v in state.items() if ".lora_" not in k and isinstance(v, Tensor)}


def base_bytes(backbone: Backbone) -> int:
    """Bytes of the base, each storage once."""
    storages = [tensor.untyped_storage() for tensor in base_tensors(backbone).values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

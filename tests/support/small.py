"""Small real models for tests: random Llama weights and a word-level tokenizer, made in a moment."""

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.model.backbone import Backbone
from rlhf.settings.groups import LoraSettings, ModelSettings, Precision

WORDS = [f"w{i}" for i in range(56)]
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
LORA = LoraSettings(rank=4, alpha=8.0)


def word_tokenizer(pad_token: str = "<pad>", num_words: int = len(WORDS)) -> PreTrainedTokenizerFast:
    """One token per word `w0` … `w55`; ids 0–3 are pad, bos, eos, unk."""
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *WORDS[:num_words]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad_token,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def write_small_model(
    folder: Path, *, pad_token: str = "<pad>", seed: int = 0, num_words: int = len(WORDS)
) -> None:
    """Save a random Llama of two layers whose predictions are far from uniform."""
    config = LlamaConfig(
        vocab_size=len(SPECIALS) + num_words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    word_tokenizer(pad_token, num_words).save_pretrained(folder)


@lru_cache(maxsize=8)
def _folder(pad_token: str, seed: int, num_words: int) -> TemporaryDirectory[str]:
    folder = TemporaryDirectory()
    write_small_model(Path(folder.name), pad_token=pad_token, seed=seed, num_words=num_words)
    return folder


def small_backbone(
    *adapters: str,
    pad_token: str = "<pad>",
    seed: int = 0,
    noisy: bool = True,
    num_words: int = len(WORDS),
    precision: Precision = "fp32",
) -> Backbone:
    """A backbone with LoRA adapters of the given names; `noisy` gives them a visible effect (B ≠ 0)."""
    folder = _folder(pad_token, seed, num_words).name
    backbone = Backbone.load(folder, settings=ModelSettings(path=folder, precision=precision))
    for index, name in enumerate(adapters):
        backbone.add_adapter(name, LORA, seed=100 + index)
        if noisy:
            perturb(backbone, name, seed=200 + index)
    return backbone


def perturb(backbone: Backbone, name: str, *, seed: int, scale: float = 0.1) -> None:
    """Add seeded noise to every weight of an adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.adapter_parameters(name).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)

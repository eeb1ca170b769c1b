"""A small Llama-shaped model and its tokenizer, made from nothing but settings, texts and a seed."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.settings.groups import ScratchSettings

PAD, UNK, BOS, END = "<|pad|>", "<|unk|>", "<|bos|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, UNK, BOS, END, *(f"<|{role}|>" for role in ROLES))
"""Ids 0, 1, 2, ... in every tokenizer made here, whichever of them pads."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message.role) }}"
    "{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


LONGEST_RUN = 1000
"""Characters that the tokenizer's trainer sees without a space, at most."""


def train_tokenizer(texts: Iterable[str], settings: ScratchSettings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`: the same texts give the same tokenizer.

    It spells every text, adds `<|bos|>` in front of plain ones, and has the chat template
    `<|bos|><|user|>...<|assistant|>...<|end|>`. Texts too few for `vocab_size` give a smaller vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (piece for text in texts for piece in short_runs(text))
    tokenizer.train_from_iterator(pieces, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos_id)]
    )
    pads: dict[str, Any] = {"own": PAD, "eos": END, "unk": UNK}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        unk_token=UNK,
        pad_token=pads[settings.pad_token],
        chat_template=CHAT_TEMPLATE,
        model_max_length=settings.max_length,
        clean_up_tokenization_spaces=False,
    )


def short_runs(text: str, longest: int = LONGEST_RUN) -> Iterator[str]:
    """The text, cut so that no run of white space, and none of other characters, is longer than `longest`.

    Such a run can be a single word to the trainer, whose time grows with the square of a word's length: a
    cell of 200,000 letters would take minutes. Text of ordinary words comes back whole.
    """
    start = 0
    for run in re.finditer(rf"\s{{{longest + 1},}}|\S{{{longest + 1},}}", text):
        for cut in range(run.start() + longest, run.end(), longest):
            yield text[start:cut]
            start = cut
    yield text[start:]


def new_model(
    settings: ScratchSettings, tokenizer: PreTrainedTokenizerFast, *, seed: int, attention: str = "sdpa"
) -> LlamaForCausalLM:
    """A model with random fp32 weights, which depend on the sizes and `seed` alone.

    Its config names no pad token: `nn.Embedding` would start that token's row at zero and keep it there.
    """
    config = model_config(settings, vocab_size=len(tokenizer), attention=attention)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def model_config(settings: ScratchSettings, *, vocab_size: int, attention: str = "sdpa") -> LlamaConfig:
    """The model's sizes; its special tokens come from its tokenizer."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=settings.tie_embeddings,
        pad_token_id=None,
        attn_implementation=attention,  # type: ignore[call-arg]  # which every configuration takes
    )

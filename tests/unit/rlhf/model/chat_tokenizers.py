"""Small tokenizers of every kind that chats meet, and a published one, for tests."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from rlhf.data.records import Message

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


STORIES = Path(__file__).parents[5] / "shared/models/tinystories-656k"
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]
CORPUS = [
    "Once upon a time there was a hello world cat.\n\nHuman: hi there\n\nAssistant: ok / yes",
    "the quick brown fox jumps over the lazy dog 0123456789 <>|_/s",
] * 50
KNOWN = sorted(set("".join(CORPUS)))

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
USER = (Message("user", "hi there"),)


def byte_level() -> Any:
    """GPT-2's kind: any text, no prefix space, no BOS."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return wrapped(made)


def llama_2() -> Any:
    """Llama 2's kind: a prefix space, merges across spaces, bytes for what it does not know, BOS."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL + every_byte, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    saved = json.loads(made.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] in SPECIAL]
    return wrapped(tokenizers.Tokenizer.from_str(json.dumps(saved)))


def unigram() -> Any:
    """T5's kind: a prefix space where there is none, EOS of its own accord, "</s>" an ordinary entry."""
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return wrapped(made)


def wrapped(tokenizer: Any) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHATML
    )


def stories() -> Any:
    """A published one: a prefix space, merges across spaces, and characters it does not know vanish."""
    if not STORIES.is_dir():
        pytest.skip("the tinystories model is not next to the repository")
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES)
    tokenizer.chat_template = CHATML.replace("<|{{ m.role }}|>", "{{ m.role }}:").replace(
        "<|assistant|>", "assistant:"
    )
    return tokenizer


@cache
def tokenizer_of(kind: str) -> Any:
    return {"byte_level": byte_level, "llama_2": llama_2, "unigram": unigram, "stories": stories}[kind]()


KINDS = ["byte_level", "llama_2", "unigram", "stories"]
every_kind = pytest.mark.parametrize("kind", KINDS)
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
KNOWN_TEXT = st.lists(
    st.sampled_from(["hello", "there", "a", " ", "  ", "\n", "\n\n", ".", "ti", "me"]), max_size=8
).map("".join)


def texts_of(kind: str) -> st.SearchStrategy[str]:
    """Texts that the tokenizer can express: any, if it knows bytes."""
    return st.one_of(KNOWN_TEXT, ANY_TEXT) if kind in ("byte_level", "llama_2") else KNOWN_TEXT


def decode(tokenizer: Any, ids: list[int], *, skip: bool = True) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))

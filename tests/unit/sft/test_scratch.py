import re
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlhf.data.records import Message
from rlhf.model.chat import decode_completion, encode_completion, encode_prompt
from rlhf.settings.groups import ScratchSettings
from sft.scratch import new_model, short_runs, train_tokenizer

TEXTS = ["Hello, how do I reset my password?", "Please open the settings, then choose a new password."] * 3
SETTINGS = ScratchSettings(vocab_size=400, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
TOKENIZER = train_tokenizer(TEXTS, SETTINGS)
TURNS = (Message("system", "Be kind."), Message("user", "Hello?"))


def test_the_same_texts_give_the_same_tokenizer() -> None:
    again = train_tokenizer(reversed(TEXTS), SETTINGS)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


@given(st.text())
def test_every_text_is_spelled_exactly(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert decode_completion(TOKENIZER, [TOKENIZER.bos_token_id], ids) == text or "<|" in text


@given(st.text("ab \n", max_size=40), st.integers(1, 5))
def test_no_run_is_longer_than_allowed_and_nothing_is_lost(text: str, longest: int) -> None:
    pieces = list(short_runs(text, longest))
    assert "".join(pieces) == text
    runs = [run for piece in pieces for run in re.findall(r"\s+|\S+", piece)]
    assert max(map(len, runs), default=0) <= longest
    if max(map(len, re.findall(r"\s+|\S+", text)), default=0) <= longest:
        assert pieces == [text]


def test_one_endless_word_is_bounded_and_ordinary_text_is_untouched() -> None:
    assert [len(piece) for piece in short_runs("go " + "x" * 2500)] == [3 + 1000, 1000, 500]
    assert all(list(short_runs(text)) == [text] for text in TEXTS)
    train_tokenizer([*TEXTS, "y" * 200_000], SETTINGS)


def test_the_published_tokenizer_opens_as_any_other(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.get_vocab() == TOKENIZER.get_vocab()
    assert opened.chat_template == TOKENIZER.chat_template
    assert encode_prompt(opened, TURNS) == encode_prompt(TOKENIZER, TURNS)


def test_a_conversation_is_marked_by_roles_and_its_answers_end() -> None:
    ids = encode_prompt(TOKENIZER, TURNS) + encode_completion(TOKENIZER, TURNS, "Hi.")
    assert TOKENIZER.decode(ids) == "<|bos|><|system|>Be kind.<|user|>Hello?<|assistant|>Hi.<|end|>"
    assert ids.count(TOKENIZER.eos_token_id) == 1


def test_plain_text_begins_with_one_bos() -> None:
    ids = encode_prompt(TOKENIZER, "Hello")
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.bos_token_id not in ids[1:]


def test_few_texts_give_no_token_that_cannot_be_spelled() -> None:
    weights = new_model(SETTINGS, TOKENIZER, seed=0).state_dict()
    assert len(TOKENIZER) < SETTINGS.vocab_size
    assert weights["model.embed_tokens.weight"].shape[0] == len(TOKENIZER)


@pytest.mark.parametrize("pad", ["eos", "unk"])
def test_what_pads_changes_no_id_and_no_initial_weight(pad: Literal["eos", "unk"]) -> None:
    settings = SETTINGS.model_copy(update={"pad_token": pad})
    tokenizer = train_tokenizer(TEXTS, settings)
    assert tokenizer.pad_token_id != TOKENIZER.pad_token_id
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    own, other = new_model(SETTINGS, TOKENIZER, seed=1), new_model(settings, tokenizer, seed=1)
    for name, weight in own.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
    assert own.state_dict()["model.embed_tokens.weight"].abs().sum(-1).min() > 0


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    first = new_model(SETTINGS, TOKENIZER, seed=1).state_dict()
    torch.rand(7)
    before = torch.get_rng_state()
    again, other = (new_model(SETTINGS, TOKENIZER, seed=seed).state_dict() for seed in (1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])

"""Tokenizers that are longer, or shorter, than the embedding; and pads that are words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.chat import decode_completion, encode_prompt
from rlhf.model.vocabulary import ADDED_PAD
from rlhf.sampling.engine import sample
from rlhf.settings.groups import ModelSettings, SamplingSettings
from sft.model import check_tokenizer, choose_pad, set_tokens, start, write
from tests.support.small import SPECIALS, word_tokenizer
from tests.unit.sft.demos import sft_settings

IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])
NUM_WORDS = 60
HOLES = (17, 23)


def write_model(folder: Path, tokenizer: PreTrainedTokenizerFast, *, num_rows: int) -> None:
    config = LlamaConfig(
        vocab_size=num_rows, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_holes() -> PreTrainedTokenizerFast:
    """The words of `word_tokenizer` without those of two ids."""
    words = {word: token for word, token in word_tokenizer().get_vocab().items() if token not in HOLES}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


class TestLonger:
    @pytest.mark.parametrize("special", [True, False])
    def test_a_tokenizer_longer_than_the_embedding_is_refused_at_load_with_both_sizes(
        self, tmp_path: Path, special: bool
    ) -> None:
        tokenizer = word_tokenizer()
        tokenizer.add_tokens(["<|new|>", "<|newer|>"], special_tokens=special)
        write_model(tmp_path, tokenizer, num_rows=NUM_WORDS)
        settings = ModelSettings(path=str(tmp_path))
        message = r"62 tokens[\s\S]*60 rows[\s\S]*resize_token_embeddings"
        with pytest.raises(UserError, match=message):
            check_tokenizer(settings)
        with pytest.raises(UserError, match=message):
            start(settings, sft_settings(), texts=[], seed=0)
        with pytest.raises(UserError, match=message):
            Backbone.load(tmp_path)

    def test_a_place_holder_of_images_needs_no_row(self, tmp_path: Path) -> None:
        """As Gemma 3's models of text alone have it."""
        backend = word_tokenizer().backend_tokenizer
        backend.add_special_tokens(["<image>"])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<eos>", extra_special_tokens={"image_token": "<image>"}
        )
        write_model(tmp_path, tokenizer, num_rows=NUM_WORDS)
        check_tokenizer(ModelSettings(path=str(tmp_path)))


class TestShorter:
    @pytest.mark.parametrize("limit", [2**26, NUM_WORDS * 3])
    @pytest.mark.parametrize("holes", [False, True])
    def test_ids_without_a_word_are_never_sampled_and_have_no_share_in_any_logprob(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holes: bool, limit: int
    ) -> None:
        for name in ("_LOGIT_ELEMENTS_PER_CHUNK", "_LOGIT_ELEMENTS_KEPT"):
            monkeypatch.setattr(f"rlhf.model.logits.{name}", limit)
        write_model(tmp_path, with_holes() if holes else word_tokenizer(), num_rows=128)
        backbone = Backbone.load(tmp_path)
        words = [i for i in range(NUM_WORDS) if not holes or i not in HOLES]
        settings = SamplingSettings(max_response_tokens=20, temperature=1.5)
        rollouts = sample(
            backbone,
            [[5, 6]] * 40,
            role=REFERENCE,
            settings=settings,
            keys=[(0, i, 0) for i in range(40)],
            seed=0,
        )
        assert {i for row in rollouts.response_lists() for i in row} <= set(words)
        assert rollouts.sampled_entropy_BT.isfinite().all()
        plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        hidden = backbone.hidden(IDS)[:, :-1].flatten(0, 1).detach().requires_grad_()
        with torch.no_grad():
            logits = plain(IDS).logits[:, :-1].flatten(0, 1)[:, words] / 1.5
        places = torch.tensor([words.index(i) for i in IDS[:, 1:].flatten().tolist()])
        expected = logits.log_softmax(-1).gather(1, places[:, None])[:, 0]
        found = backbone.logprobs(hidden, IDS[:, 1:].flatten(), temperature=1.5)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        assert hidden.grad is not None
        assert hidden.grad.isfinite().all()
        weight = plain.get_output_embeddings().weight[words].detach() / 1.5
        expected_grad = (torch.eye(len(words))[places] - logits.softmax(-1)) @ weight
        torch.testing.assert_close(hidden.grad, expected_grad, atol=1e-5, rtol=1e-4)

    def test_a_model_whose_rows_are_all_words_is_left_alone(self, tmp_path: Path) -> None:
        write_model(tmp_path, word_tokenizer(), num_rows=NUM_WORDS)
        backbone = Backbone.load(tmp_path)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            hidden = backbone.hidden(IDS)
            assert torch.equal(backbone.logits(hidden), plain.get_output_embeddings()(hidden))


def one_special() -> PreTrainedTokenizerFast:
    """GPT-2's kind: one special token for everything, and every row a word."""
    words = {word: token for token, word in enumerate(["<|endoftext|>", *(f"w{i}" for i in range(40))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.Fuse()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end, unk_token=end)


class TestPad:
    @pytest.mark.parametrize("num_spare", [0, 7])
    def test_with_one_special_token_no_word_vanishes_and_the_pad_is_never_sampled(
        self, tmp_path: Path, num_spare: int
    ) -> None:
        tokenizer = one_special()
        write_model(tmp_path / "base", tokenizer, num_rows=len(tokenizer) + num_spare)
        begin = start(ModelSettings(path=str(tmp_path / "base")), sft_settings(), texts=[], seed=0)
        pad = choose_pad(begin, [3, 4])
        set_tokens(begin, begin.model, pad_id=pad, sampling=SamplingSettings())
        write(begin.model, begin.tokenizer, tmp_path / "published")
        backbone = Backbone.load(tmp_path / "published")
        assert backbone.tokenizer.pad_token == ADDED_PAD
        assert backbone.pad_id == pad == 41
        for i in range(40):
            ids = encode_prompt(backbone.tokenizer, f"w{i}")
            assert ids == [i + 1]
            assert decode_completion(backbone.tokenizer, [1], ids) == f"w{i}"
        keys = [(0, i, 0) for i in range(60)]
        settings = SamplingSettings(max_response_tokens=20)
        rollouts = sample(backbone, [[5]] * 60, role=REFERENCE, settings=settings, keys=keys, seed=0)
        assert max(i for row in rollouts.response_lists() for i in row) < 41
        assert AutoTokenizer.from_pretrained(tmp_path / "published").pad_token_id == pad
        plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "published")
        drawn = plain.generate(torch.full((60, 1), 5), attention_mask=torch.ones(60, 1), max_new_tokens=20)
        assert int(drawn[drawn != pad].max()) < 41  # transformers pads with it what has ended
        assert plain.generation_config.suppress_tokens == list(range(41, max(42, 41 + num_spare)))

    def test_a_word_that_an_earlier_version_made_the_pad_stays_in_texts(self) -> None:
        tokenizer = one_special()
        tokenizer.pad_token = "w39"
        ids = encode_prompt(tokenizer, "w1 w39 w2")
        assert ids == [2, 40, 3]
        assert decode_completion(tokenizer, [1], [*ids, 0]) == "w1w39w2"

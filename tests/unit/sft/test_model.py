"""The model that the stage starts from, and the one that it leaves for plain transformers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from rlhf.errors import UserError
from rlhf.model.merging import merge
from rlhf.settings.groups import LoraSettings, ModelSettings, SamplingSettings
from sft.model import Start, choose_pad, published_dtype, set_tokens, start, training_precision, write
from tests.support.small import SPECIALS, word_tokenizer, write_small_model
from tests.unit.sft.demos import EOS, random_examples, sft_settings, small_start, trainer

UNK, BOS = SPECIALS.index("<unk>"), SPECIALS.index("<bos>")
SEQUENCE_CLASSIFIER = """
import json, sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
lm = AutoModelForCausalLM.from_pretrained(folder)
torch.manual_seed(0)
classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
long, short = [5, 6, 7, 2], [9, 2]
batch = tokenizer.pad({"input_ids": [long, short]}, padding_side="right", return_tensors="pt")
with torch.no_grad():
    together = classifier(**batch).logits
    alone = [classifier(input_ids=torch.tensor([ids])).logits[0] for ids in (long, short)]
embeddings = [model.get_input_embeddings().weight for model in (lm, classifier)]
print(json.dumps({
    "same embeddings": torch.equal(*embeddings),
    "rows agree": torch.allclose(together, torch.stack(alone), atol=1e-6),
    "pads agree": tokenizer.pad_token_id == classifier.config.pad_token_id,
}))
"""


def publish(begin: Start, folder: Path, used: list[int] | None = None) -> int:
    pad = choose_pad(begin, used or [])
    set_tokens(begin, begin.model, pad_id=pad, sampling=SamplingSettings(max_response_tokens=7))
    write(begin.model, begin.tokenizer, folder)
    return pad


class TestPad:
    def test_a_pad_of_its_own_is_kept(self, tmp_path: Path) -> None:
        begin = small_start(tmp_path, sft_settings(), pad_token="<pad>")
        assert choose_pad(begin, []) == begin.tokenizer.pad_token_id == SPECIALS.index("<pad>")

    def test_instead_of_an_eos_the_unknown_token_pads(self, tmp_path: Path) -> None:
        begin = small_start(tmp_path, sft_settings(), pad_token="<eos>")
        assert choose_pad(begin, []) == begin.tokenizer.pad_token_id == UNK
        assert begin.tokenizer.eos_token_id == EOS

    def test_an_eos_of_the_generation_settings_does_not_pad_either(self, tmp_path: Path) -> None:
        begin = small_start(tmp_path, sft_settings(), pad_token="<pad>")
        begin.eos_ids = (EOS, SPECIALS.index("<pad>"), UNK)
        assert choose_pad(begin, []) == BOS

    def test_without_special_tokens_no_word_pads_but_a_new_token_that_is_not_likely(
        self, tmp_path: Path
    ) -> None:
        begin = small_start(tmp_path, sft_settings(), pad_token="<eos>")
        begin.tokenizer.unk_token = begin.tokenizer.bos_token = begin.tokenizer.eos_token
        begin.eos_ids = (EOS,)
        num = len(begin.tokenizer)
        ids = torch.tensor([[5, 6, 7, 8]])
        before = begin.model(ids).logits
        assert choose_pad(begin, [*range(4), num - 1, num - 2]) == num
        after = begin.model(ids).logits
        assert after.shape[-1] == begin.model.config.vocab_size == num + 1
        torch.testing.assert_close(after[..., :num], before)
        torch.testing.assert_close(after[..., num], before.mean(-1))
        assert begin.tokenizer.decode([num - 1], skip_special_tokens=True) == "w55"

    def test_a_pad_beyond_the_embedding_is_not_used(self, tmp_path: Path) -> None:
        begin = small_start(tmp_path, sft_settings())
        begin.tokenizer.add_special_tokens({"pad_token": "<added>"})
        assert begin.tokenizer.pad_token_id == begin.model.get_input_embeddings().weight.shape[0]
        assert choose_pad(begin, []) == UNK


@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>", "w3"])
def test_a_published_model_says_the_same_everywhere(tmp_path: Path, pad_token: str) -> None:
    begin = small_start(tmp_path, sft_settings(), pad_token=pad_token)
    pad = publish(begin, tmp_path / "out")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token_id == opened.config.pad_token_id == generation.pad_token_id == pad
    assert opened.config.eos_token_id == generation.eos_token_id == tokenizer.eos_token_id == EOS
    assert opened.config.bos_token_id == generation.bos_token_id == BOS
    assert (generation.do_sample, generation.temperature, generation.top_k) == (True, 1.0, 0)
    assert generation.max_new_tokens == 7
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(opened(ids).logits, begin.model.eval()(ids).logits)
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))


def test_every_eos_is_published(tmp_path: Path) -> None:
    begin = small_start(tmp_path, sft_settings())
    begin.model.generation_config.eos_token_id = [7, EOS]
    begin = Start(begin.model, begin.tokenizer, (EOS, 7))
    publish(begin, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [EOS, 7]


def open_as_classifier(folder: Path) -> dict[str, bool]:
    done = subprocess.run(
        [sys.executable, "-c", SEQUENCE_CLASSIFIER, str(folder)], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_classifier_gets_the_embeddings_of_a_checkpoint_that_had_them_under_the_head(
    tmp_path: Path,
) -> None:
    write_small_model(tmp_path / "base", pad_token="<eos>")
    config, weights = tmp_path / "base" / "config.json", tmp_path / "base" / "model.safetensors"
    settings = json.loads(config.read_text()) | {"tie_word_embeddings": True, "pad_token_id": 0}
    config.write_text(json.dumps(settings))
    tensors = load_file(weights)
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert not open_as_classifier(tmp_path / "base")["same embeddings"]  # the trap is real
    begin = start(ModelSettings(path=str(tmp_path / "base")), sft_settings(method="none"), texts=[], seed=0)
    publish(begin, tmp_path / "out")
    assert all(open_as_classifier(tmp_path / "out").values())


@pytest.mark.slow
def test_a_real_checkpoint_of_that_kind_opens_as_a_classifier(tmp_path: Path, shared: Path) -> None:
    model = ModelSettings(path=str(shared / "models" / "tinystories-656k"))
    publish(start(model, sft_settings(method="none"), texts=[], seed=0), tmp_path / "out")
    assert all(open_as_classifier(tmp_path / "out").values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_merging_gives_the_adapted_model(tmp_path: Path, precision: Literal["fp32", "bf16"]) -> None:
    settings = sft_settings(method="lora", lora=LoraSettings(rank=4, alpha=8.0))
    begin = small_start(tmp_path, settings, precision=precision)
    trained = trainer(tmp_path, settings, random_examples(16), begin=begin)
    trained.train()
    adapted: Any = trained.model
    adapted.eval()
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    with torch.no_grad():
        expected, base = adapted(ids).logits, adapted.get_base_model()
        with adapted.disable_adapter():
            unadapted = adapted(ids).logits
        merged = merge(adapted)
        found = merged(ids).logits
    assert merged is base
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert (expected - unadapted).abs().max() > 0.1
    dtype = published_dtype(ModelSettings(path="x", precision=precision), settings)
    assert {weight.dtype for weight in merged.parameters()} == {dtype}
    torch.testing.assert_close(found, expected, atol=1e-4 if precision == "fp32" else 0.15, rtol=0)


def test_merging_transposes_where_the_model_does(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = GPT2Config(vocab_size=60, initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0, **sizes)
    begin = Start(GPT2LMHeadModel(config), word_tokenizer(), (EOS,))
    settings = sft_settings(method="lora", lora=LoraSettings(rank=4, alpha=8.0))
    adapted: Any = trainer(tmp_path, settings, random_examples(16), begin=begin)
    adapted.train()
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    with torch.no_grad():
        expected = adapted.model.eval()(ids).logits
        torch.testing.assert_close(merge(adapted.model)(ids).logits, expected, atol=1e-4, rtol=0)


def test_full_training_keeps_fp32_weights_also_for_bf16(tmp_path: Path) -> None:
    begin = small_start(tmp_path, sft_settings(method="full"), precision="bf16")
    assert begin.model.dtype == torch.float32
    assert published_dtype(ModelSettings(path="x", precision="bf16"), sft_settings()) == torch.bfloat16


def test_a_model_taken_as_it_is_keeps_its_type(tmp_path: Path) -> None:
    write_small_model(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16).save_pretrained(
        tmp_path / "base"
    )
    settings = sft_settings(method="none")
    begin = start(ModelSettings(path=str(tmp_path / "base")), settings, texts=[], seed=0)
    assert begin.model.dtype == torch.bfloat16
    assert published_dtype(ModelSettings(path="x"), settings) is None


def test_a_chat_template_of_the_recipe_is_published(tmp_path: Path) -> None:
    begin = small_start(tmp_path, sft_settings(), chat_template="{{ messages[0].content }}")
    publish(begin, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages[0].content }}"


class TestRefused:
    def load(self, path: Path | str) -> Start:
        return start(ModelSettings(path=str(path)), sft_settings(), texts=[], seed=0)

    def test_a_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there is no such model folder"):
            self.load(tmp_path / "nowhere")

    def test_a_hub_id_out_of_reach(self) -> None:
        with pytest.raises(UserError, match="nobody/nothing"):
            self.load("nobody/nothing")

    def test_a_damaged_checkpoint(self, tmp_path: Path) -> None:
        write_small_model(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"not weights")
        with pytest.raises(UserError, match="cannot load the model"):
            self.load(tmp_path)

    def test_a_folder_without_a_tokenizer_is_explained_to_the_end(self, tmp_path: Path) -> None:
        write_small_model(tmp_path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).unlink()
        with pytest.raises(UserError, match=r"cannot load the model \(its tokenizer\): ") as caught:
            self.load(tmp_path)
        what, fix = str(caught.value).split("\n")
        assert caught.value.__cause__ is not None
        assert what.endswith(" ".join(str(caught.value.__cause__).split()))
        assert "Give a folder with config.json, tokenizer" in fix

    def test_a_checkpoint_that_lacks_weights(self, tmp_path: Path) -> None:
        write_small_model(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"lacks weights of a causal language model: lm_head\.weight"):
            self.load(tmp_path)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "bf16"), (None, "fp32")],
)
def test_a_recipe_with_a_quantized_base_trains_in_the_precision_of_the_checkpoint(
    tmp_path: Path, stored: torch.dtype | None, expected: str
) -> None:
    write_small_model(tmp_path)
    if stored is not None:
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
        model.to(stored).save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path), precision="nf4")
    assert training_precision(settings) == expected
    begin = start(settings, sft_settings(method="lora"), texts=[], seed=0)
    assert {str(weight.dtype) for weight in begin.model.parameters()} == {
        {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[expected]
    }


def test_a_checkpoint_that_is_stored_quantized_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    write_small_model(tmp_path / "plain")
    quantization = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=quantization, device_map={"": "cpu"}
    )
    model.save_pretrained(tmp_path / "stored")
    word_tokenizer().save_pretrained(tmp_path / "stored")
    with pytest.raises(UserError, match="stored quantized"):
        start(ModelSettings(path=str(tmp_path / "stored")), sft_settings(method="lora"), texts=[], seed=0)

"""What is said when a model cannot be loaded."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, BloomConfig

from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.loading import check_model_path
from rlhf.settings.groups import ModelSettings
from sft.model import start
from tests.support.small import small_backbone, word_tokenizer
from tests.unit.sft.demos import sft_settings


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_missing_model_folder_is_not_mistaken_for_a_hub_id(path: str) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        check_model_path(path)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        Backbone.load(tmp_path)


def test_a_model_that_cannot_be_made_with_this_attention_names_one_that_can(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4)
    AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path))
    with pytest.raises(UserError, match=r"model\.attention=eager"):
        Backbone.load(tmp_path, settings=settings)
    with pytest.raises(UserError, match=r"model\.attention=eager"):
        start(settings, sft_settings(), texts=[], seed=0)
    Backbone.load(tmp_path, settings=settings.model_copy(update={"attention": "eager"}))


def test_an_adapter_is_not_taken_for_the_model_that_it_is_on(tmp_path: Path) -> None:
    backbone = small_backbone("policy")
    backbone.export_adapter("policy", tmp_path, task_type="CAUSAL_LM", base_path=backbone.path)
    with pytest.raises(UserError, match="an adapter"):
        Backbone.load(tmp_path)
    shutil.copy(Path(backbone.path) / "config.json", tmp_path)
    with pytest.raises(UserError, match="an adapter"):
        Backbone.load(tmp_path)
    with pytest.raises(UserError, match="an adapter"):
        start(ModelSettings(path=str(tmp_path)), sft_settings(), texts=[], seed=0)

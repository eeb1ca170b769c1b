"""What `model.chat_template` may be: a known name, a file, or the text of a template."""

import json
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.model.chat import decode_completion, encode_completion, encode_prompt
from rlhf.settings.chat_templates import CHATML, OWN, resolve_chat_template
from rlhf.settings.recipe import load_recipe
from tests.unit.rlhf.model.chat_tokenizers import USER, byte_level

TEXT = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"


def template_of(folder: Path, value: str) -> str | None:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"model": {"path": "m", "chat_template": value}}))
    return load_recipe(path).model.chat_template


def test_a_known_name_is_its_template(tmp_path: Path) -> None:
    assert template_of(tmp_path, "chatml") == template_of(tmp_path, "ChatML") == CHATML
    assert "<|start_header_id|>" in str(template_of(tmp_path, "llama3"))


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_named_template_gives_an_answer_that_ends_with_eos_alone(name: str) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = OWN[name]
    prompt_ids, ids = encode_prompt(tokenizer, USER), encode_completion(tokenizer, USER, "a time")
    assert "hi there" in tokenizer.decode(prompt_ids)
    assert decode_completion(tokenizer, prompt_ids, ids) == "a time"
    assert ids[-1] == tokenizer.eos_token_id


def test_a_path_is_read_absolute_or_from_the_recipe_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.jinja").write_text(TEXT)
    assert template_of(tmp_path, str(tmp_path / "own.jinja")) == TEXT
    assert template_of(tmp_path, "own.jinja") == TEXT
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.txt").write_text(TEXT)
    monkeypatch.chdir(elsewhere)
    assert template_of(tmp_path, "other.txt") == TEXT


def test_a_models_folder_and_its_configuration_hold_a_template(tmp_path: Path) -> None:
    several = [{"name": "rag", "template": "{{ 1 }}"}, {"name": "default", "template": TEXT}]
    for number, values in enumerate(({"chat_template": TEXT}, {"chat_template": several})):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
        assert template_of(tmp_path, str(folder)) == TEXT
        assert template_of(tmp_path, f"{number}/tokenizer_config.json") == TEXT


def test_jinja_text_is_the_template_itself(tmp_path: Path) -> None:
    assert template_of(tmp_path, TEXT) == TEXT


def test_a_word_that_is_none_of_these_is_refused_with_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`chatlm` is no chat template") as caught:
        template_of(tmp_path, "chatlm")
    assert "Did you mean `chatml`?" in str(caught.value)
    assert "model.chat_template" in str(caught.value)
    with pytest.raises(UserError, match="is no chat template"):
        template_of(tmp_path, "templates/missing.jinja")


def test_a_file_without_jinja_and_one_that_does_not_parse_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.jinja").write_text("just words")
    with pytest.raises(UserError, match="holds no Jinja template"):
        template_of(tmp_path, "words.jinja")
    (tmp_path / "broken.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match="does not parse"):
        template_of(tmp_path, "broken.jinja")


def test_the_feedback_models_template_is_read_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(TEXT)
    local = {"path": "judge", "chat_template": "own.jinja"}
    labeling = {"constitution": {"path": "c.yaml", "feedback": {"local": local}}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"model": {"path": "m"}, "labeling": labeling}))
    section = load_recipe(path).resolved["labeling"]
    assert section["constitution"]["feedback"]["local"]["chat_template"] == TEXT


def test_every_template_that_trl_brings_is_found_by_name() -> None:
    for name in ("qwen3", "gemma", "llama3_2", "gptoss"):
        assert "messages" in resolve_chat_template(name, setting="model.chat_template")

import pytest
from hypothesis import given

from rlhf.data.records import Message, Turns
from rlhf.errors import UserError
from rlhf.model.chat import decode_completion, encode_completion, encode_prompt
from tests.unit.rlhf.model.chat_tokenizers import (
    CHATML,
    USER,
    byte_level,
    decode,
    every_kind,
    texts_of,
    tokenizer_of,
)


@every_kind
def test_a_conversations_ids_are_what_the_template_gives(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    messages = [{"role": "user", "content": "hi there"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(tokenizer, USER) == expected


@every_kind
def test_an_answer_in_a_conversation_comes_back_and_ends_with_the_templates_eos(kind: str) -> None:
    tokenizer = tokenizer_of(kind)

    @given(texts_of(kind), texts_of(kind))
    def check(said: str, answer: str) -> None:
        prompt = (Message("user", said),)
        prompt_ids, ids = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, answer)
        assert decode_completion(tokenizer, prompt_ids, ids) == answer
        assert ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1

    check()


def test_the_whole_conversation_reads_as_the_template_renders_it_up_to_the_eos() -> None:
    tokenizer = tokenizer_of("byte_level")
    turns: Turns = (Message("system", "ok"), *USER, Message("assistant", "yes"), *USER)
    prompt_ids, ids = encode_prompt(tokenizer, turns), encode_completion(tokenizer, turns, "a time")
    messages = [
        {"role": turn.role, "content": turn.content} for turn in (*turns, Message("assistant", "a time"))
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert decode(tokenizer, prompt_ids + ids, skip=False) + "\n" == rendered


def test_eos_is_appended_where_the_template_writes_none() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML.replace("{{ eos_token }}", "")
    ids = encode_completion(tokenizer, USER, "a time")
    assert ids[-1] == tokenizer.eos_token_id
    assert decode(tokenizer, ids) == "a time\n"


def test_a_response_ends_with_the_first_of_several_eos_that_the_template_writes() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML.replace("{{ eos_token }}", "<|end|>")
    end, eos = tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id
    assert encode_completion(tokenizer, USER, "a", eos=(eos, end))[-2:] == [*tokenizer("a")["input_ids"], end]
    assert encode_completion(tokenizer, "hi", "a", eos=(eos, end))[-1] == eos


def test_known_prompt_ids_give_the_same_completion() -> None:
    tokenizer = tokenizer_of("llama_2")
    for prompt in ("Once upon", USER):
        known = encode_prompt(tokenizer, prompt)
        expected = encode_completion(tokenizer, prompt, " a time")
        assert encode_completion(tokenizer, prompt, " a time", prompt_ids=known) == expected


def template_error(template: str | None, turns: Turns = USER) -> str:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    with pytest.raises(UserError) as caught:
        encode_completion(tokenizer, turns, "a time")
    return str(caught.value)


def test_a_conversation_without_a_template_is_an_error_with_two_ways_out() -> None:
    message = template_error(None)
    assert "has no chat template" in message
    assert "`model.chat_template`" in message
    assert "`transcripts: text`" in message


def test_a_template_that_changes_an_answered_conversation_is_an_error() -> None:
    changing = "{{ messages | length }}" + CHATML
    assert "it changes what stands before an answer" in template_error(changing)


def test_a_template_that_refuses_a_conversation_says_why() -> None:
    refusing = "{{ raise_exception('system comes first') }}"
    message = template_error(refusing, (*USER, Message("system", "ok")))
    assert "it refuses a conversation of user, system (system comes first)" in message


def test_a_template_that_does_not_parse_is_a_user_error() -> None:
    assert "chat template: " in template_error("{% for %}")

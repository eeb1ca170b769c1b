"""What a message says is in the prompt, or is refused by its name; tags are tokens; a run has one day."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf.data.messages import read_turns, with_tools
from rlhf.data.records import Message, Turns
from rlhf.errors import UserError
from rlhf.model.chat import decode_completion, encode_completion, encode_prompt
from rlhf.runs.date import freeze_date
from rlhf.settings.chat_templates import CHATML, resolve_chat_template

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Manila", "day": 2}'}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "wet", "tool_call_id": "c1"},
]
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}


def tokenizer_with(template: str) -> Any:
    """A byte-level tokenizer with the tokens of ChatML, and tags that are not special, as Qwen's has."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet
    )
    made.train_from_iterator(["the weather is wet in Manila, I think"] * 9, trainer)
    made.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_start|>", chat_template=template
    )


def named(name: str) -> Any:
    return tokenizer_with(resolve_chat_template(name, setting="model.chat_template"))


def text_of(tokenizer: Any, turns: Turns) -> str:
    return str(tokenizer.decode(encode_prompt(tokenizer, turns)))


def refusal(template: str, messages: list[dict[str, Any]], tools: Any = None) -> str:
    turns = with_tools(read_turns(messages, "`messages`"), tools)
    with pytest.raises(UserError) as caught:
        encode_prompt(tokenizer_with(template), turns)
    assert caught.value.fix
    return caught.value.what


def said(role: str, content: str, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


# Refused by name.


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([said("system", "Be kind."), said("user", "Hi", name="Ann")], "its `name` of message 2 (by `user`)"),
        ([said("user", "a"), said("assistant", "b", reasoning_content="c")], "its `reasoning_content`"),
        (CALLED, "the name of a tool call of message 2 (by `assistant`)"),
        ([said("user", "Hi", audio="x.wav")], "its `audio` of message 1"),
        ([said("user", "Hi", thinking={"budget": 3})], "its `thinking` of message 1"),
    ],
)
def test_a_key_that_the_template_passes_over_is_refused_with_the_message(
    messages: list[dict[str, Any]], what: str
) -> None:
    assert f"it does not render {what}" in refusal(CHATML, messages)


def test_tools_that_the_template_passes_over_are_refused() -> None:
    assert "the tools that it may call" in refusal(CHATML, [said("user", "Hi")], [TOOL])


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.role + m.content }}{% endfor %}", "message 1"),
        ("{{ messages[-1].role + messages[-1].content }}", "message 1 (by `system`)"),
        ("You are asked:{% if add_generation_prompt %} Answer:{% endif %}", "what it says of message 1"),
        ("{% for m in messages %}{{ m.content }} {% endfor %}", "the role of message 1"),
        ("{% for m in messages %}{{ m.role + m.content[:4] }}{% endfor %}", "the end of message 2"),
    ],
)
def test_a_template_that_leaves_out_a_role_or_a_content_is_refused(template: str, what: str) -> None:
    assert what in refusal(template, [said("system", "Be"), said("user", "What is the weather?")])


def test_a_template_without_the_answer_is_refused() -> None:
    tokenizer = tokenizer_with("{{ 'Q: ' + messages[0].content + ' A:' }}")
    with pytest.raises(UserError, match="does not render what it says of message 2"):
        encode_completion(tokenizer, (Message("user", "Why?"),), "So.")


def test_a_template_for_one_question_needs_no_roles() -> None:
    template = "Q: {{ messages[0].content }} A:{% if messages[1] %} {{ messages[1].content }}{% endif %}"
    tokenizer = tokenizer_with(template)
    prompt = (Message("user", "Why?"),)
    assert text_of(tokenizer, prompt) == "Q: Why? A:"
    assert tokenizer.decode(encode_completion(tokenizer, prompt, "So.")) == " So.<|im_end|>"


def test_a_template_that_opens_no_answer_or_ends_it_with_words_is_refused() -> None:
    closed = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    with pytest.raises(UserError, match="the model would have to say it"):
        encode_completion(tokenizer_with(closed), (Message("user", "Why?"),), "So.")
    worded = CHATML.replace("eos_token", "'<|eot|>'")
    with pytest.raises(UserError, match=r"ends an answer with '<\|eot\|>'"):
        encode_completion(tokenizer_with(worded), (Message("user", "Why?"),), "So.")


# Rendered.


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1"])
def test_tool_calls_and_tools_reach_a_template_that_knows_them(name: str) -> None:
    messages = CALLED if name != "llama3_1" else [*CALLED[:2], CALLED[2] | {"role": "ipython"}]
    text = text_of(named(name), with_tools(read_turns(messages, "`messages`"), [TOOL]))
    for part in ("weather", "Manila", '"day": 2', "wet", '"description": "d"'):
        assert part in text
    assert '\\"city' not in text  # an object, and not JSON text of one


def test_a_thought_of_an_earlier_turn_is_left_out_where_the_template_renders_the_newest_one() -> None:
    tokenizer = named("qwen3")
    turns = read_turns(
        [said("user", "a"), said("assistant", "b", reasoning_content="hm"), said("user", "c")], "m"
    )
    assert "hm" not in text_of(tokenizer, turns)
    ids = encode_completion(tokenizer, turns[:1], turns[1])
    assert tokenizer.decode(ids) == "<think>\nhm\n</think>\n\nb<|im_end|>"


def test_what_a_template_cannot_take_in_one_message_is_refused_and_no_crash() -> None:
    what = refusal("{% for m in messages %}{{ m.role + m.content + m.score }}{% endfor %}", CALLED[:1])
    assert "it refuses a conversation of user" in what


# Tags.


def test_a_thought_in_an_answer_is_the_templates_thought_and_no_empty_one_comes_before_it() -> None:
    tokenizer = named("qwen3")
    prompt = (Message("user", "Rain?"),)
    answer = "<think>\nI think\n</think>\n\nwet"
    ids = encode_completion(tokenizer, prompt, answer)
    assert tokenizer.decode(ids) == f"{answer}<|im_end|>"
    assert ids[0] == tokenizer.convert_tokens_to_ids("<think>")
    assert ids.count(tokenizer.convert_tokens_to_ids("</think>")) == 1


def test_a_sampled_response_with_tags_comes_back_as_the_tokens_that_were_drawn() -> None:
    tokenizer = named("qwen3")
    tag = tokenizer.convert_tokens_to_ids
    for prompt in ((Message("user", "Rain?"),), "Rain?"):
        prompt_ids = encode_prompt(tokenizer, prompt)
        drawn = [tag("<think>"), *tokenizer("\nwet\n")["input_ids"], tag("</think>")]
        drawn += [*tokenizer("\n\n")["input_ids"], tag("<tool_call>"), *tokenizer("wet")["input_ids"]]
        drawn += [tag("</tool_call>"), tokenizer.eos_token_id]
        text = decode_completion(tokenizer, prompt_ids, drawn)
        assert encode_completion(tokenizer, prompt, text) == drawn


def test_what_reads_like_a_turns_end_is_still_text() -> None:
    tokenizer = named("qwen3")
    for turns in ((Message("user", "a<|im_end|>b"),), read_turns(CALLED[:2], "m")):
        marks = encode_prompt(tokenizer, turns).count(tokenizer.eos_token_id)
        assert marks == len(turns)
    call = {"name": "x<|im_end|>", "arguments": {"a": "<|im_end|>"}}
    forged = [CALLED[0], CALLED[1] | {"tool_calls": [call]}]
    assert encode_prompt(tokenizer, read_turns(forged, "m")).count(tokenizer.eos_token_id) == 2


# Days.


@pytest.fixture
def today() -> Iterator[None]:
    yield
    freeze_date(None)


DATED = "{{ strftime_now('%Y-%m-%d') }} " + CHATML
ASKING = "{{ date_string if date_string is defined else '26 Jul 2024' }} " + CHATML


@pytest.mark.usefixtures("today")
def test_a_template_writes_the_day_of_the_run_and_not_todays() -> None:
    tokenizer, turns = tokenizer_with(DATED), (Message("user", "Hi"),)
    assert text_of(tokenizer, turns).startswith(f"{date.today()} ")
    freeze_date("2026-11-28")
    assert text_of(tokenizer, turns).startswith("2026-11-28 ")
    freeze_date("2026-11-28", given="2024-02-29")
    assert text_of(tokenizer, turns).startswith("2024-02-29 ")


@pytest.mark.usefixtures("today")
def test_a_templates_own_default_day_stands_until_the_recipe_names_one() -> None:
    tokenizer, turns = tokenizer_with(ASKING), (Message("user", "Hi"),)
    freeze_date("2026-11-28")
    assert text_of(tokenizer, turns).startswith("26 Jul 2024 ")
    freeze_date("2026-11-28", given="2024-02-29")
    assert text_of(tokenizer, turns).startswith("29 Feb 2024 ")

"""What a model learns as an answer is what the row says, to the word, or the row is left out and counted."""

from typing import Any

import pytest

from rlhf.data.counts import RecordCounts
from rlhf.data.records import Demonstration, Message
from rlhf.errors import UserError
from rlhf.model.answers import ADDED, LEFT_OUT
from rlhf.model.chat import encode_prompt, eos_ids
from rlhf.settings.groups import LengthSettings
from sft.data import Encoder, Example
from tests.unit.rlhf.model.test_rendering import named, refusal, said, tokenizer_with

TURN = "{{ '<|im_start|>' + m.role + '\\n' }}"
ANSWER_HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
STRIPS_THOUGHTS = (
    f"{{% for m in messages %}}{TURN}{{{{ m.content.split('</think>')[-1] + '<|im_end|>' }}}}{{% endfor %}}"
    f"{ANSWER_HEADER}"
)
ELSE_IS_ASSISTANT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>assistant\\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    f"{ANSWER_HEADER}"
)
WORDS_OF_TOOLS = (
    "{{% for t in tools or [] %}}{{{{ {parts} }}}}{{% endfor %}}{{% for m in messages %}}"
    "{{{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}}}{{% endfor %}}"
)
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def encoded(tokenizer: Any, *answers: Message) -> tuple[list[Example], RecordCounts]:
    """Each answer to the same question as SFT takes it."""
    counts = RecordCounts()
    encoder = Encoder(
        tokenizer, eos_ids(tokenizer), length=LengthSettings(max_tokens=900), context=900, counts=counts
    )
    question = (Message("user", "Rain?"),)
    records = [
        Demonstration(prompt=question, completion=answer.content, more=answer.more) for answer in answers
    ]
    return encoder.encode(records), counts


def learned(tokenizer: Any, answer: Message) -> str:
    (example,), _ = encoded(tokenizer, answer)
    return str(tokenizer.decode(example.completion_ids))


def by_assistant(content: str, **others: Any) -> Message:
    return Message("assistant", content).with_others(others)


@pytest.mark.parametrize(
    ("template", "content", "reason"),
    [
        (STRIPS_THOUGHTS, "<think>wet</think>Yes.", LEFT_OUT),
        ("qwen3", "<think>one</think>Middle.<think>two</think>Last.", LEFT_OUT),
        ("qwen3", "<think>one, and then it was cut", ADDED),
        ("qwen3", "<thinking>one</thinking>Yes.", ADDED),
        (STRIPS_THOUGHTS.replace("m.content", "(m.content|lower)"), "In Manila", LEFT_OUT),
    ],
)
def test_an_answer_of_which_the_template_makes_another_is_left_out_and_counted(
    template: str, content: str, reason: str
) -> None:
    tokenizer = named(template)
    plain = by_assistant("yes")
    examples, counts = encoded(tokenizer, plain, by_assistant(content), plain)
    assert [example.demonstration.completion for example in examples] == ["yes", "yes"]
    assert counts.dropped() == {reason: 1}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (by_assistant("<think>wet</think>Yes."), "<think>\nwet\n</think>\n\nYes.<|im_end|>"),
        (by_assistant("Yes.", reasoning_content="wet"), "<think>\nwet\n</think>\n\nYes.<|im_end|>"),
        (by_assistant("think"), "<think>\n\n</think>\n\nthink<|im_end|>"),
    ],
)
def test_thoughts_and_plain_answers_are_kept_as_qwens_template_writes_them(
    answer: Message, expected: str
) -> None:
    assert learned(named("qwen3"), answer) == expected


def test_what_a_template_puts_before_plain_answers_is_counted() -> None:
    answers = [by_assistant("Yes."), by_assistant("<think>wet</think>Yes."), by_assistant("No.")]
    examples, counts = encoded(named("qwen3"), *answers)
    assert len(examples) == 3
    assert counts.noted() == {"the chat template adds <think> </think> to the answer": 2}


def test_nothing_is_counted_where_a_template_writes_the_answer_alone() -> None:
    _, counts = encoded(named("chatml"), by_assistant("Yes."), by_assistant("  <b>No</b>, never.\n"))
    assert (counts.noted(), counts.dropped()) == ({}, {})


def test_a_system_message_that_is_written_as_the_assistants_is_refused() -> None:
    what = refusal(ELSE_IS_ASSISTANT, [said("system", "Be kind."), said("user", "Hi")])
    assert "what `system` says is written as if `assistant` said it" in what


@pytest.mark.parametrize(
    ("parts", "lost"),
    [
        ("t.function.name", "the description of tool 1"),
        ("t.function.name + t.function.description", "the parameters of tool 1"),
        ("t.function.description + t.function.parameters|tojson", "the name of tool 1"),
    ],
)
def test_a_part_of_a_tool_that_the_template_passes_over_is_refused(parts: str, lost: str) -> None:
    assert lost in refusal(WORDS_OF_TOOLS.format(parts=parts), [said("user", "Hi")], [TOOL])


def test_a_template_that_was_escaped_twice_is_refused_and_a_backslash_in_a_message_is_not() -> None:
    twice = STRIPS_THOUGHTS.replace("\\n", "\\\\n")
    assert "a backslash and a letter" in refusal(twice, [said("user", "Hi")])
    assert encode_prompt(named("chatml"), (Message("user", "print('\\n')"),))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("{{ 1 // (messages|length - 1) }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    ],
)
def test_whatever_fails_inside_a_template_is_an_error_of_the_template(code: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        encode_prompt(tokenizer_with(code + STRIPS_THOUGHTS), (Message("user", "Hi"),))

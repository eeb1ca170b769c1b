"""What of a reply is the answer, in all the ways in which models reason, refuse and break off."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from labeling.constitution.cache import Cache
from labeling.constitution.config import EndpointSettings, RevisionsSettings
from labeling.constitution.endpoint import Call
from labeling.constitution.feedback import Request, Written
from labeling.constitution.replies import REFUSALS, Said, is_refusal, said_in, vote_in, without_reasoning
from labeling.constitution.served import CHAT, ServedModel
from rlhf.data.records import Message


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<think>one</think>\n\nThe answer.", "The answer."),
        ("<think>\n\n</think>\n\nThe answer.", "The answer."),
        ("one\n</think>\n\nThe answer.", "The answer."),
        ("<think>a <think>b</think></think>The answer.", "The answer."),
        ("<think>one</think>The<think>two</think> answer.", "The answer."),
        ("<THINK>one</THINK>The answer.", "The answer."),
        ("<thinking>one</thinking>The answer.", "The answer."),
        ("<thought>\none</thought>\nThe answer.", "The answer."),
        ("<reasoning>one</reasoning>The answer.", "The answer."),
        ("<seed:think>one</seed:think>The answer.", "The answer."),
        ("<longcat_think>one</longcat_think>The answer.", "The answer."),
        ("<scratchpad>one</scratchpad>\nThe answer.", "The answer."),
        ("[THINK]one[/THINK]The answer.", "The answer."),
        ("◁think▷one◁/think▷The answer.", "The answer."),
        ("<unused94>thought\none<unused95>The answer.", "The answer."),
        ("<think>one</think><answer>The answer.</answer>", "The answer."),
        (
            "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>The answer.<|end_of_solution|>",
            "The answer.",
        ),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>The answer.<|END_RESPONSE|>", "The answer."),
        (
            "<|channel|>analysis<|message|>one<|end|>"
            "<|start|>assistant<|channel|>final<|message|>The answer.<|return|>",
            "The answer.",
        ),
        ("<|channel|>final <|constrain|>text<|message|>The answer.", "The answer."),
        ("analysisThe user asks.assistantfinalThe answer.", "The answer."),
        ("Let ```x``` be\n</think>The answer is ```y```.", "The answer is ```y```."),
        # the first ending counts, and then the next that no code quotes
        ("<think>Is `</think>` a tag?</think>It is `</think>`.", "It is `</think>`."),
    ],
)
def test_reasoning_before_the_answer_is_taken_off(reply: str, answer: str) -> None:
    found = without_reasoning(reply)
    assert (found.text, found.problem, found.reasoned) == (answer, "", True)


@pytest.mark.parametrize(
    "reply",
    [
        "<think>It never",
        "Sure. <think>It never",
        "[THINK]It never",
        "<analysis>It never",
        "<|channel|>analysis<|message|>It never",
        "analysisThe user never",
        "<think>one</think><think>It never",
    ],
)
def test_reasoning_that_does_not_end_is_an_answer_that_never_came(reply: str) -> None:
    assert without_reasoning(reply) == Said("", "cut_off", reasoned=True)


@pytest.mark.parametrize(
    "text",
    [
        "A plain answer.",
        "Put it into `<think>` tags, and end with `</think>`.",
        "```xml\n<think>x</think>\n```\nis how it is done.",
        "analysis of variance is a method.",
        "Analysis: it is fine.",
        "My <analysis>of this</analysis> is short.",
        "<answer>42</answer>",
        "a < b and b > c",
    ],
)
def test_an_answer_that_speaks_of_marks_stays_as_it_is(text: str) -> None:
    assert without_reasoning(text) == Said(text)


@given(st.text(), st.text("abc </>think`\n", max_size=40))
def test_whatever_came_no_whole_mark_is_left_outside_code(thought: str, answer: str) -> None:
    found = without_reasoning(f"<think>{thought}</think>{answer}")
    assert found.reasoned
    assert "`" in found.text or ("<think>" not in found.text and "</think>" not in found.text)


def choice(content: Any, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"finish_reason": finish, "message": {"content": content, **message}}


@pytest.mark.parametrize(
    ("given_choice", "expected"),
    [
        (choice("Hi."), Said("Hi.")),
        (choice("Hi.", None), Said("Hi.")),
        (choice("Hi", "length"), Said("Hi", "cut_off")),
        (choice("Hi", "MAX_TOKENS"), Said("Hi", "cut_off")),
        (choice("Hi", "content_filter"), Said("Hi", "refused")),
        (choice(None, refusal="No."), Said("", "refused")),
        (choice([{"type": "refusal", "refusal": "No."}]), Said("", "refused")),
        (choice("Hi.", reasoning_content="one"), Said("Hi.", "", reasoned=True)),
        (choice("Hi.", reasoning="one"), Said("Hi.", "", reasoned=True)),
        (choice(None, "length", reasoning_content="one"), Said("", "cut_off", reasoned=True)),
        (choice("", reasoning_content="one"), Said("", "", reasoned=True)),
        (
            choice([{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hi."}]),
            Said("Hi.", "", reasoned=True),
        ),
    ],
)
def test_each_field_of_a_reply_is_read(given_choice: dict[str, Any], expected: Said) -> None:
    assert said_in(given_choice) == expected


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I can’t assist with that request.", True),
        ("Sorry, I can't.", True),
        ("**I cannot help with that.**", True),
        ("I must decline to answer.", True),
        ("As an AI language model, I cannot write this.", True),
        ("I can't help you to hurt him, but talk to somebody: call 112.", False),
        ("I'm sorry, but I can't help with that. However, there is a book on it.", False),
        ("I can't swim.", False),
        ("Sorry to hear that! Rest a little.", False),
        ("I cannot help with that. " + "Here is why. " * 20, False),
        ("She said: I'm sorry, but I can't.", False),
    ],
)
def test_a_refusal_is_short_and_offers_nothing(text: str, is_one: bool) -> None:
    assert is_refusal(text, REFUSALS) == is_one


@pytest.mark.parametrize(
    ("text", "problem", "vote"),
    [
        ("A", "", "A"),
        ("(B)", "", "B"),
        ("**B**", "", "B"),
        ("It is B.", "", "B"),
        ("A is better.", "", "A"),
        ("A user would like B", "", "B"),
        ("A user would like neither", "", None),
        ("A or B", "", None),
        ("B because it is", "cut_off", "B"),
        ("The better answer is A since", "cut_off", "A"),
        ("Okay, so A", "cut_off", None),
        ("A user asks", "cut_off", None),
        ("A", "refused", None),
    ],
)
def test_a_vote_is_what_the_answer_names(text: str, problem: Any, vote: str | None) -> None:
    assert vote_in(Said(text, problem), ("A", "B")) == vote


def test_texts_that_an_earlier_program_kept_lose_their_reasoning_and_are_not_asked_again(
    tmp_path: Path,
) -> None:
    request = Request(messages=(Message("user", "Hello?"),), max_tokens=7, seed=1)
    settings = EndpointSettings.model_validate({"url": "http://127.0.0.1:9/v1", "model": "m"})
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 7}
    body |= {"temperature": 1.0, "seed": 1, "logprobs": True}
    with Cache(tmp_path / "a.sqlite", scope="test") as cache:
        kept = {"text": "<think>one</think>Hi.", "logprob": -2.0}
        cache.put(Call(CHAT, body, lambda reply: None).key, kept, {})
        [found] = ServedModel(settings, cache).ask([request], "asking")
    assert found == Written(text="Hi.", logprob=None)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="is no regular expression"):
        RevisionsSettings.model_validate(json.loads('{"responses": [{"path": "x"}], "refusals": ["("]}'))

"""Messages: parts written as JSON text, results of tools out of order, indented answers beside chats."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.prompt_form import as_conversation
from rlhf.data.records import Demonstration
from tests.unit.rlhf.data.rows import DEMONSTRATION, jsonl, message, read_one, read_with_counts


def chat(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [message("user", asked), message("assistant", answer)]}


def test_parts_of_a_content_that_are_json_text_are_read(tmp_path: Path) -> None:
    asked = json.dumps([{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}])
    made = read_one(DEMONSTRATION, tmp_path, chat(asked, json.dumps([{"type": "text", "text": "Wait."}])))
    assert (made.prompt[0].content, made.completion) == ("What now?", "Wait.")


@pytest.mark.parametrize(
    "answer",
    [
        '[{"text": "a"}]',
        '[{"type": "bug", "text": "a"}]',
        '["a"]',
        "[1, 2]",
        "[]",
        "[see below",
        '[{"type": "text"}]',
    ],
)
def test_other_json_is_what_was_said(tmp_path: Path, answer: str) -> None:
    assert read_one(DEMONSTRATION, tmp_path, chat("List.", answer)).completion == answer


def test_an_image_in_json_text_is_left_out_and_counted(tmp_path: Path) -> None:
    image = json.dumps([{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "x"}}])
    _, counts = read_with_counts(DEMONSTRATION, jsonl(tmp_path, chat("Hi", "a"), chat(image, "a")))
    assert counts.dropped() == {"message with a part of type image_url": 1}


def prices(*order: str) -> dict[str, Any]:
    calls = [
        {"type": "function", "id": name, "function": {"name": "price", "arguments": {"item": name}}}
        for name in ("1", "2")
    ]
    results = [{"role": "tool", "tool_call_id": name, "content": f"{name}00"} for name in order]
    asked = [message("user", "Prices?"), {"role": "assistant", "content": "", "tool_calls": calls}]
    return {"messages": [*asked, *results, message("assistant", "100 and 200.")]}


def test_tool_results_in_another_order_than_their_calls_are_left_out_and_counted(tmp_path: Path) -> None:
    records, counts = read_with_counts(DEMONSTRATION, jsonl(tmp_path, prices("1", "2"), prices("2", "1")))
    assert len(records) == 1
    assert counts.dropped() == {"tool results in another order than their calls": 1}


@pytest.mark.parametrize(
    ("completion", "begun"),
    [
        ("    c = a + b\n    return c\n", "    c = a + b\n    return c\n"),
        ("\n    c = 1\n    d = 2", "    c = 1\n    d = 2"),
        ("\tc = 1\n\td = 2", "\tc = 1\n\td = 2"),
        (" Hi.", "Hi."),
        ("\n\nHi.", "Hi."),
        (" \r\n Hi.", "Hi."),
    ],
)
def test_a_completion_beside_chats_keeps_its_indentation(completion: str, begun: str) -> None:
    made = as_conversation(Demonstration(prompt="def f(a, b):\n", completion=completion))
    assert made.completion == begun

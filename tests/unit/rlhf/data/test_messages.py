"""Messages as public data sets write them: nothing of a message is lost without a word."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.data.records import Message, write_jsonl
from tests.unit.rlhf.data.rows import (
    DEMONSTRATION,
    PROMPT,
    RANKING,
    error_of,
    jsonl,
    message,
    read_one,
    read_with_counts,
)

CALL = {"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": [2]}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
ASKED = message("user", "Hi")
ANSWER = message("assistant", "Ho")
GOOD = {"messages": [ASKED, ANSWER]}


def dropped(folder: Path, row: dict[str, Any], read: Any = DEMONSTRATION) -> dict[str, int]:
    _, counts = read_with_counts(read, jsonl(folder, GOOD if read is not RANKING else PAIR, row))
    assert counts.used() == 1
    return counts.dropped()


PAIR = {"chosen": [ASKED, ANSWER], "rejected": [ASKED, message("assistant", "No")]}


def test_sharegpt_conversations_are_messages(tmp_path: Path) -> None:
    said = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Ho")]
    row = {"conversations": [{"from": who, "value": what} for who, what in said]}
    turns = (Message("system", "Be kind."), Message("user", "Hi"))
    assert read_one(PROMPT, tmp_path, row).prompt == turns
    found = read_one(DEMONSTRATION, tmp_path, row)
    assert (found.prompt, found.completion) == (turns, "Ho")


def test_every_other_key_of_a_message_is_kept(tmp_path: Path) -> None:
    others = {"tool_calls": [CALL], "reasoning_content": "hm", "name": "Ann", "thinking": {"b": 1}}
    row = {"messages": [ASKED, {**ANSWER, **others}, message("user", "So?"), ANSWER]}
    turns = read_one(DEMONSTRATION, tmp_path, row).prompt
    assert turns[1].others == others
    assert list(turns[1].others["tool_calls"][0]["function"]["arguments"]) == ["z", "a"]


def test_tools_and_tool_calls_may_be_json_text_and_nulls_say_nothing(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": '[{"name": "f", "arguments": "{}"}]'}
    row = {"messages": [{**ASKED, "name": None, "tool_calls": []}, call], "tools": '[{"name": "f"}]'}
    found = read_one(DEMONSTRATION, tmp_path, row)
    assert found.prompt == (Message("user", "Hi").with_others({"tools": [{"name": "f"}]}),)
    assert found.completion == ""
    assert found.answer.others == {"tool_calls": [{"name": "f", "arguments": "{}"}]}


def test_parts_of_text_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo", "image_url": None}]
    assert read_one(PROMPT, tmp_path, {"prompt": [message("user", parts)]}).prompt[0].content == "Hello"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [message("user", None), ANSWER]}, "message without content"),
        ({"messages": [ASKED, message("assistant", None)]}, "message without content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}, ANSWER]},
            "message with a part of type image",
        ),
        ({"messages": [ASKED, {**ANSWER, "weight": 0}]}, "answer of weight 0"),
        ({"prompt": "Hi", "completion": "Ho", "tools": [TOOL]}, "tools for a prompt that is text"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_counted(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    assert dropped(tmp_path, row) == {reason: 1}


def test_answers_that_are_told_apart_by_their_texts_may_have_nothing_else(tmp_path: Path) -> None:
    called = {**message("assistant", None), "tool_calls": [CALL]}
    reasoned = {**ANSWER, "reasoning_content": "hm"}
    for answer, reason in ((called, "answer with tool_calls"), (reasoned, "answer with reasoning_content")):
        row = {"chosen": [ASKED, answer], "rejected": [ASKED, ANSWER]}
        assert dropped(tmp_path, row, RANKING) == {reason: 1}


@pytest.mark.parametrize("column", ["system", "system_prompt", "history", "images", "chat_template_kwargs"])
def test_a_column_that_belongs_to_the_prompt_and_is_not_read_is_refused_by_name(
    tmp_path: Path, column: str
) -> None:
    row = {"instruction": "Add.", "input": "", "output": "2", column: ["Be kind."]}
    path = jsonl(tmp_path, {**row, column: []}, row)
    for read in (DEMONSTRATION, PROMPT):
        found = error_of(read, path)
        assert f"line 2: the column `{column}` would be part of the prompt" in found
        assert f"ignore: [{column}]" in found
        assert len(read_with_counts(read, path, ignore=[column])[0]) == 2
    templates = {"prompt": "{system}\n\n{instruction}", "completion": "{output}"}
    if column == "system":
        path = jsonl(tmp_path, {**row, "system": "Be kind."})
        assert read_with_counts(DEMONSTRATION, path, templates=templates)[0][0].prompt == "Be kind.\n\nAdd."


def test_keys_of_messages_can_be_ignored(tmp_path: Path) -> None:
    row = {"messages": [{**ASKED, "name": "Ann", "id": 3}, ANSWER]}
    assert read_one(DEMONSTRATION, tmp_path, row, ignore=["name", "id"]).prompt == (Message("user", "Hi"),)


def test_other_keys_are_written_and_read_back(tmp_path: Path) -> None:
    row = {"messages": [ASKED, {**message("assistant", None), "tool_calls": [CALL]}], "tools": [TOOL]}
    found = read_one(DEMONSTRATION, tmp_path, row)
    write_jsonl(tmp_path / "again.jsonl", [found])
    assert read_with_counts(DEMONSTRATION, str(tmp_path / "again.jsonl"))[0] == [found]

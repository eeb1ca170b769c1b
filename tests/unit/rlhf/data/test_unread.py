"""What a source says and nothing reads is named once, or refused where it belongs to the prompt."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.rlhf.data.rows import (
    DEMONSTRATION,
    PROMPT,
    RANKING,
    Read,
    error_of,
    jsonl,
    message,
    read_one,
    read_with_counts,
)

ASKED = "What can I do about a slow router?"
ANSWER = {"prompt": ASKED, "completion": "Restart it."}
PAIR = {"prompt": ASKED, "chosen": "Restart it.", "rejected": "Nothing."}
HISTORY = [message("user", "Which device is it?"), message("assistant", "The one in the hall.")]


def test_columns_that_nothing_reads_are_named_once_with_their_rows(tmp_path: Path) -> None:
    rows = [{**ANSWER, "id": 0, "split": "train"}, {**ANSWER, "id": 1, "split": ""}, {**ANSWER, "note": None}]
    path = jsonl(tmp_path, *rows)
    _, counts = read_with_counts(DEMONSTRATION, path)
    assert counts.accounts()["not_read"] == {path: {"id": 2, "split": 1}}
    assert counts.rows()[0][3] == "not read: id (2), split (1)"
    assert "not_read" not in counts.to_json()
    _, counts = read_with_counts(DEMONSTRATION, path, ignore=["id", "split"])
    assert counts.accounts() == counts.to_json()
    assert counts.rows()[0][3] == ""


def test_rows_that_give_no_record_are_looked_at_too(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ANSWER, {"prompt": ASKED, "completion": "", "topic": "routers"})
    _, counts = read_with_counts(DEMONSTRATION, path)
    assert counts.not_read(path) == {"topic": 1}


def test_what_is_read_or_compared_is_not_named(tmp_path: Path) -> None:
    talk = [message("user", ASKED), message("assistant", "Restart it.")]
    rows: dict[Read, dict[str, Any]] = {
        RANKING: {**PAIR, "score_chosen": 3, "score_rejected": 1, "annotator": "a"},
        DEMONSTRATION: {"conversations": talk, "tools": [], "is_safe": True},
        PROMPT: {"question": "Why?"},
    }
    for read, row in rows.items():
        path = jsonl(tmp_path, row)
        assert read_with_counts(read, path)[1].not_read(path) == {}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("system_message", "Be a pirate, always."),
        ("System", "Be a pirate, always."),
        ("system-prompt", "Short."),
        ("systemPromptText", "Be a pirate, always."),
        ("sys", "Short."),
        ("context", "It is in the hall."),
        ("Passage", "It is in the hall."),
        ("document", "It is in the hall."),
        ("chat_history", HISTORY),
        ("dialogue history", "User: Hello."),
        ("conversations", HISTORY),
        ("messages", HISTORY),
        ("input", "My router is three years old."),
        ("metadata.system", "Be a pirate, always."),
        ("meta.chatHistory", HISTORY),
    ],
)
@pytest.mark.parametrize(
    ("read", "row"), [(RANKING, PAIR), (DEMONSTRATION, ANSWER), (PROMPT, {"prompt": ASKED})]
)
def test_what_would_be_part_of_the_prompt_is_refused_by_name(
    tmp_path: Path, read: Read, row: dict[str, Any], column: str, value: Any
) -> None:
    outer, _, inner = column.partition(".")
    path = jsonl(tmp_path, row, {**row, outer: {inner: value, "lang": "en"} if inner else value})
    found = error_of(read, path)
    messages_are_read = read is PROMPT and column in ("messages", "conversations")
    named = "prompt" if messages_are_read else column
    assert f"{path}, line 2: the column `{named}` would be part of the prompt" in found
    for ignored in {column, outer}:
        assert read_with_counts(read, path, ignore=[ignored])[1].used() == 2


def test_the_input_of_an_instruction_that_is_mapped_alone_is_refused(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "My router is slow.", "output": "Mon routeur est lent."}
    columns = {"prompt": "instruction", "completion": "output"}
    path = jsonl(tmp_path, row)
    assert "the column `input` would be part of the prompt" in error_of(DEMONSTRATION, path, columns=columns)
    assert read_one(DEMONSTRATION, tmp_path, row).prompt == "Translate.\n\nMy router is slow.\n\n"
    assert read_one(DEMONSTRATION, tmp_path, {**row, "input": ""}, columns=columns)


def test_what_the_prompt_has_in_it_is_not_lost(tmp_path: Path) -> None:
    talk = [message("system", "Be a pirate, always."), message("user", ASKED)]
    row = {"prompt": talk, "completion": "Aye.", "system": "Be a pirate, always.", "context": ASKED}
    assert read_one(DEMONSTRATION, tmp_path, row).completion == "Aye."
    said = [message("user", ASKED), message("assistant", "Restart it.")]
    assert read_one(RANKING, tmp_path, {**PAIR, "messages": said}).ranks == (1, 2)


def test_messages_that_are_not_the_chosen_conversation_are_refused(tmp_path: Path) -> None:
    chosen = [message("user", ASKED), message("assistant", "Restart it.")]
    rejected = [message("user", ASKED), message("assistant", "Nothing.")]
    row = {"messages": chosen, "chosen": chosen, "rejected": rejected}
    assert read_one(DEMONSTRATION, tmp_path, row).completion == "Restart it."
    path = jsonl(tmp_path, row, {**row, "messages": rejected})
    assert "line 2: `messages` is not the conversation of `chosen`" in error_of(DEMONSTRATION, path)
    named = read_with_counts(DEMONSTRATION, path, columns={"messages": "messages"})[0]
    assert [record.completion for record in named] == ["Restart it.", "Nothing."]
    better = read_with_counts(DEMONSTRATION, path, columns={"chosen": "chosen", "rejected": "rejected"})[0]
    assert [record.completion for record in better] == ["Restart it."] * 2


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (DEMONSTRATION, {"prompt": ASKED, "completion": f"{ASKED} Restart it."}),
        (DEMONSTRATION, {"prompt": [message("user", ASKED)], "completion": f" {ASKED}\nRestart it."}),
        (RANKING, {"prompt": ASKED, "chosen": f"{ASKED} Restart it.", "rejected": f"{ASKED} Nothing."}),
        (RANKING, {"prompt": ASKED, "completions": [f"{ASKED} a", f"{ASKED} b"], "ranks": [1, 2]}),
    ],
)
def test_answers_that_begin_with_their_prompts_are_refused_and_a_single_one_is_counted(
    tmp_path: Path, read: Read, row: dict[str, Any]
) -> None:
    path = jsonl(tmp_path, row, row)
    assert f"{path}, line 1: 2 of 2 answers begin with their whole prompt" in error_of(read, path)
    other: dict[str, Any] = ANSWER if read is DEMONSTRATION else PAIR
    _, counts = read_with_counts(read, jsonl(tmp_path, row, other, other))
    assert counts.used() == 3
    assert counts.noted() == {"answers that begin with their whole prompt": 1}


def test_answers_may_begin_with_a_short_prompt(tmp_path: Path) -> None:
    row = {"prompt": "Hello", "completion": "Hello! What can I do for you?"}
    assert read_with_counts(DEMONSTRATION, jsonl(tmp_path, row, row))[1].noted() == {}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_second_header_in_csv_is_refused_with_its_line(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f'{mark}prompt,completion\n"a\nb",c\n{mark}prompt,completion\nd,e\n', encoding="utf-8")
    assert f"{path}, row 2: the header is there again, at line 4" in error_of(DEMONSTRATION, str(path))


def test_no_tools_as_text_beside_a_text_prompt_are_nothing(tmp_path: Path) -> None:
    assert read_one(DEMONSTRATION, tmp_path, {**ANSWER, "tools": "[]"}).completion == "Restart it."

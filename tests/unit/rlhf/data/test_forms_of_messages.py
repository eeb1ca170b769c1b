"""Messages are read in the forms that files give them, and text that only looks like messages is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.prompt_form import NOTE, TURNS_NOTE, split_key
from rlhf.data.records import Message
from rlhf.data.sources import read_demonstrations
from rlhf.settings.groups import SourceSettings
from tests.unit.rlhf.data.rows import (
    ASSISTANT,
    DEMONSTRATION,
    HUMAN,
    PROMPT,
    RANKING,
    TALK,
    TALK_MESSAGES,
    TURNS,
    error_of,
    jsonl,
    message,
    read_one,
    read_with_counts,
)

LA, NO = [message("assistant", "La")], [message("assistant", "No")]
OTHER = {"prompt": "p", "completion": "c"}


def test_messages_that_are_json_text_are_messages_in_every_field(tmp_path: Path) -> None:
    prompt, answer = json.dumps(TALK_MESSAGES), json.dumps(LA)
    made = read_one(DEMONSTRATION, tmp_path, {"prompt": prompt, "completion": answer})
    assert (made.prompt, made.completion) == (TURNS, "La")
    whole = {"messages": json.dumps([*TALK_MESSAGES, *LA])}
    assert read_one(DEMONSTRATION, tmp_path, whole).prompt == TURNS
    pair = read_one(RANKING, tmp_path, {"prompt": prompt, "chosen": answer, "rejected": json.dumps(NO)})
    assert (pair.prompt, pair.completions) == (TURNS, ("La", "No"))
    assert read_one(DEMONSTRATION, tmp_path, {"prompt": "p", "completion": '["a"]'}).completion == '["a"]'


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_messages_as_python_prints_them_are_refused(tmp_path: Path, field: str) -> None:
    path = jsonl(tmp_path, {**OTHER, field: str(TALK_MESSAGES)})
    assert "as Python prints it" in error_of(DEMONSTRATION, path)


def test_a_prompt_and_an_answer_that_are_lists_of_texts_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": '["Hi"]', "chosen": '["a"]', "rejected": '["b"]'})
    assert "are lists of texts" in error_of(RANKING, path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": TALK + ASSISTANT, "completion": f" La.{HUMAN} More!"},
            "answer that goes on with further turns",
        ),
        ({"question": "q", "answer": f"a{HUMAN} b{ASSISTANT} c"}, "answer that goes on with further turns"),
        ({"messages": [message("system", "s"), message("user", ""), *LA]}, "message without content"),
        ({"messages": TALK_MESSAGES}, "conversation ends with a turn by user"),
    ],
)
def test_rows_that_hold_no_whole_answer_are_left_out_and_counted(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    records, counts = read_with_counts(DEMONSTRATION, jsonl(tmp_path, OTHER, row))
    assert (len(records), counts.dropped()) == (1, {reason: 1})


@pytest.mark.parametrize(
    "row",
    [
        {"transcript": f"{HUMAN} hi\nAssistant: yes\nHuman: go{ASSISTANT} La"},
        {"transcript": f"{HUMAN} hi\n\nassistant: yes{HUMAN} go{ASSISTANT} La"},
        {"prompt": "human: hi\n\nassistant:", "completion": "La"},
    ],
)
def test_a_transcript_whose_turns_are_marked_otherwise_becomes_no_messages(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    path = jsonl(tmp_path, {"transcript": f"{TALK}{ASSISTANT} La"}, row)
    records, counts = read_with_counts(DEMONSTRATION, path, transcripts="messages")
    assert (len(records), counts.dropped()) == (1, {"transcript with turns that are marked otherwise": 1})


def test_an_answer_that_is_yet_to_come_leaves_a_prompt(tmp_path: Path) -> None:
    row = {"messages": [*TALK_MESSAGES, message("assistant", None)]}
    assert read_one(PROMPT, tmp_path, row).prompt == TURNS


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [{"from": m["role"], "value": m["content"]} for m in TALK_MESSAGES],
            "chosen": {"from": "gpt", "value": "La"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {"input": {"messages": TALK_MESSAGES}, "preferred_output": LA, "non_preferred_output": NO},
        {"prompt": "Hello.", "chosen": [*TALK_MESSAGES, *LA], "rejected": [*TALK_MESSAGES, *NO]},
    ],
    ids=["LLaMA-Factory", "OpenAI", "the prompt is what the user said first"],
)
def test_preferences_of_other_programs_are_one_pair_in_every_stage(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    pair = read_one(RANKING, tmp_path, row)
    assert (pair.prompt, pair.completions, pair.ranks) == (TURNS, ("La", "No"), (1, 2))
    made = read_one(DEMONSTRATION, tmp_path, row)
    assert (made.prompt, made.completion) == (TURNS, "La")
    assert read_one(PROMPT, tmp_path, row).prompt == TURNS


def test_prompts_are_read_with_the_columns_of_pairs_and_not_without(tmp_path: Path) -> None:
    row = {"q": "Sing.", "good": [*TALK_MESSAGES, *LA], "bad": [*TALK_MESSAGES, *NO]}
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert read_one(PROMPT, tmp_path, row, columns=columns).prompt == TURNS
    refused = error_of(PROMPT, jsonl(tmp_path, row), columns={"prompt": "q"})
    assert "`good` holds the conversation" in refused


def test_white_space_and_empty_system_messages_do_not_move_a_prompt_across_the_split() -> None:
    one = split_key("Sing.", "messages")
    assert one == split_key("\n\nSing.\n", "messages")
    assert one == split_key((Message("user", "Sing.\n"),), "messages")
    assert one == split_key((Message("system", ""), Message("user", "Sing.")), "messages")
    assert one != split_key((Message("system", "s"), Message("user", "Sing.")), "messages")
    assert split_key("Sing.\n\n", "text") == '"Sing.\\n\\n"'


def test_transcripts_and_other_texts_that_become_messages_are_counted_apart(tmp_path: Path) -> None:
    rows = [{"transcript": f"{TALK}{ASSISTANT} La"}, OTHER, {"messages": [*TALK_MESSAGES, *LA]}]
    sources = [SourceSettings(path=jsonl(tmp_path, *rows))]
    _, counts = read_demonstrations(sources, seed=0, run_folder=Path("runs/r"), form="auto")
    assert counts.noted() == {TURNS_NOTE: 1, NOTE: 1}

from pathlib import Path
from typing import Any

import pytest

from rlhf.data.records import Demonstration, Message, Prompt, Ranking
from tests.unit.rlhf.data.rows import (
    ASSISTANT,
    DEMONSTRATION,
    HUMAN,
    PROMPT,
    RANKING,
    TALK,
    TALK_MESSAGES,
    TURNS,
    message,
    read_one,
)


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "2 + 2 =", "completion": " 4"}, "2 + 2 =", " 4"),
        ({"prompt": "Hi", "completion": [message("assistant", "Ho")]}, (Message("user", "Hi"),), "Ho"),
        ({"prompt": TALK_MESSAGES, "completion": "La."}, TURNS, "La."),
        ({"prompt": TALK_MESSAGES, "completion": [message("assistant", "La.")]}, TURNS, "La."),
        ({"messages": [*TALK_MESSAGES, message("assistant", "La.")]}, TURNS, "La."),
        ({"question": "Why?", "answer": "So."}, "Why?\n\n", "So."),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, "Add.\n\n1 1\n\n", "2"),
        ({"instruction": "Sing.", "input": "", "output": "La."}, "Sing.\n\n", "La."),
        ({"instruction": "Sing.", "input": None, "output": "La."}, "Sing.\n\n", "La."),
        ({"instruction": "Sing.", "output": "La."}, "Sing.\n\n", "La."),
        ({"transcript": f"{TALK}{ASSISTANT} La."}, f"{TALK}{ASSISTANT}", " La."),
        ({"chosen": f"{TALK}{ASSISTANT} La.", "rejected": "anything"}, f"{TALK}{ASSISTANT}", " La."),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "No"}, "Hi", "Ho"),
    ],
)
def test_a_demonstration_is_recognized_by_its_fields(
    tmp_path: Path, row: dict[str, Any], prompt: Any, completion: str
) -> None:
    assert read_one(DEMONSTRATION, tmp_path, row) == Demonstration(prompt=prompt, completion=completion)


@pytest.mark.parametrize(
    ("row", "ranking"),
    [
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, "F"], "annotator": "ann"},
            Ranking(prompt="p", completions=("a", "b", "c"), ranks=(2, 1, "F"), annotator="ann"),
        ),
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "comparisons": [[0, 1, 0.75], [2, 1, 1]]},
            Ranking(prompt="p", completions=("a", "b", "c"), comparisons=((0, 1, 0.75), (2, 1, 1.0))),
        ),
        (
            {"prompt": "p", "completions": ["a", ""], "ranks": [1, 2]},
            Ranking(prompt="p", completions=("a", ""), ranks=(1, 2)),
        ),
        (
            {"prompt": TALK_MESSAGES, "completions": [[message("assistant", "La")], "Lo"], "ranks": [1, 1]},
            Ranking(prompt=TURNS, completions=("La", "Lo"), ranks=(1, 1)),
        ),
        (
            {"prompt": "p", "chosen": "good", "rejected": "bad"},
            Ranking(prompt="p", completions=("good", "bad"), ranks=(1, 2)),
        ),
        (
            {"prompt": "p", "chosen": "good", "rejected": "bad", "probability": 0.8},
            Ranking(prompt="p", completions=("good", "bad"), comparisons=((0, 1, 0.8),)),
        ),
        (
            {"chosen": f"{TALK}{ASSISTANT} La.", "rejected": f"{TALK}{ASSISTANT}  No. \n"},
            Ranking(prompt=f"{TALK}{ASSISTANT}", completions=(" La.", " No."), ranks=(1, 2)),
        ),
        (
            {
                "chosen": [*TALK_MESSAGES, message("assistant", "La")],
                "rejected": [*TALK_MESSAGES, message("assistant", "No")],
            },
            Ranking(prompt=TURNS, completions=("La", "No"), ranks=(1, 2)),
        ),
        (
            {
                "prompt": TALK_MESSAGES,
                "chosen": [message("assistant", "La")],
                "rejected": [message("assistant", "No")],
            },
            Ranking(prompt=TURNS, completions=("La", "No"), ranks=(1, 2)),
        ),
        (
            {
                "prompt": "Sing.",
                "chosen": [*TALK_MESSAGES, message("assistant", "La")],
                "rejected": [*TALK_MESSAGES, message("assistant", "No")],
            },
            Ranking(prompt=TURNS, completions=("La", "No"), ranks=(1, 2)),
        ),
    ],
)
def test_a_ranking_is_recognized_by_its_fields(tmp_path: Path, row: dict[str, Any], ranking: Ranking) -> None:
    assert read_one(RANKING, tmp_path, row) == ranking


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi"}, "Hi"),
        ({"prompt": TALK_MESSAGES}, TURNS),
        ({"messages": TALK_MESSAGES}, TURNS),
        ({"messages": [*TALK_MESSAGES, message("assistant", "La.")]}, TURNS),
        ({"question": "Why?", "answer": "So."}, "Why?\n\n"),
        ({"instruction": "Add.", "input": "1 1"}, "Add.\n\n1 1\n\n"),
        ({"transcript": f"{TALK}{ASSISTANT} La."}, f"{TALK}{ASSISTANT}"),
        ({"transcript": f"{TALK}{ASSISTANT}"}, f"{TALK}{ASSISTANT}"),
        ({"chosen": f"{TALK}{ASSISTANT} La.", "rejected": f"{TALK}{ASSISTANT} No."}, f"{TALK}{ASSISTANT}"),
    ],
)
def test_a_prompt_is_recognized_by_its_fields(tmp_path: Path, row: dict[str, Any], prompt: Any) -> None:
    assert read_one(PROMPT, tmp_path, row) == Prompt(prompt=prompt)


@pytest.mark.parametrize("transcripts", ["text", "messages"])
def test_the_kinds_agree_on_the_prompt_of_a_row(tmp_path: Path, transcripts: str) -> None:
    row = {"chosen": f"{TALK}{ASSISTANT} La.", "rejected": f"{TALK}{ASSISTANT} No."}
    prompts = {
        read_one(read, tmp_path, row, transcripts=transcripts).prompt
        for read in (DEMONSTRATION, RANKING, PROMPT)
    }
    assert len(prompts) == 1


def test_prompt_and_completion_of_a_transcript_read_as_the_transcript_does(tmp_path: Path) -> None:
    transcript = f"{TALK}{ASSISTANT} La la."
    record = read_one(DEMONSTRATION, tmp_path, {"transcript": transcript})
    assert record.prompt + record.completion == transcript


def test_a_transcript_becomes_messages_on_request(tmp_path: Path) -> None:
    row = {"transcript": f"{TALK} {ASSISTANT}  La. "}
    record = read_one(DEMONSTRATION, tmp_path, row, transcripts="messages")
    assert record == Demonstration(prompt=TURNS, completion="La.")


def test_a_template_in_transcript_form_makes_conversations_of_any_columns(tmp_path: Path) -> None:
    settings = {
        "templates": {"prompt": HUMAN + " {q}" + ASSISTANT},
        "columns": {"completion": "a"},
        "transcripts": "messages",
    }
    record = read_one(DEMONSTRATION, tmp_path, {"q": "Why?", "a": "So."}, **settings)
    assert record == Demonstration(prompt=(Message("user", "Why?"),), completion="So.")

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.records import Prompt
from rlhf.data.sources import read_prompts
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings
from tests.unit.rlhf.data.rows import (
    ASSISTANT,
    DEMONSTRATION,
    GOOD,
    PROMPT,
    RANKING,
    TALK,
    TALK_MESSAGES,
    Read,
    error_of,
    jsonl,
    message,
    read_with_counts,
)


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (
            RANKING,
            {**GOOD, "completions": list("abcd"), "ranks": [1, 2, 3]},
            "completion 4 has no rank (4 completions, 3",
        ),
        (RANKING, {**GOOD, "ranks": [1, 2, 3]}, "3 ranks for 2 completions"),
        (RANKING, {**GOOD, "ranks": [1, 0]}, "completion 2 has rank 0"),
        (RANKING, {**GOOD, "ranks": [1, "2"]}, "completion 2 has rank '2'"),
        (RANKING, {**GOOD, "ranks": [1, None]}, "completion 2 has rank None"),
        (RANKING, {**GOOD, "ranks": 1}, "`ranks` is a number, not a list"),
        (RANKING, {**GOOD, "ranks": None}, "`ranks` is null"),
        (RANKING, {"prompt": "p", "completions": ["a", "b"]}, "neither `ranks` nor `comparisons`"),
        (RANKING, {"prompt": None, "completions": ["a", "b"], "ranks": [1, 2]}, "`prompt` is null"),
        (RANKING, {**GOOD, "completions": ["a"], "ranks": [1]}, "at least 2 completions (1 given)"),
        (RANKING, {**GOOD, "completions": "ab"}, "`completions` is text, not a list"),
        (RANKING, {**GOOD, "completions": ["a", 3]}, "completion 2 is a number, not text"),
        (
            RANKING,
            {**GOOD, "completions": ["a", [message("user", "b")]]},
            "completion 2 is not one message by the ass",
        ),
        (RANKING, {"completions": ["a", "b"], "ranks": [1, 2]}, "the record has no `prompt`"),
        (RANKING, {"prompt": "p", "chosen": "a"}, "the record has no `rejected`"),
        (
            RANKING,
            {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 1.01},
            "1.01 is outside [0, 1]",
        ),
        (
            RANKING,
            {"prompt": "p", "chosen": "a", "rejected": "b", "probability": "0.5"},
            "a probability is text",
        ),
        (RANKING, {"prompt": "p", "chosen": "a", "rejected": "b", "probability": True}, "is true or false"),
        (
            RANKING,
            {"prompt": "p", "chosen": "a", "rejected": 5},
            "`rejected` is a number, not text or messages",
        ),
        (RANKING, {**GOOD, "ranks": None, "comparisons": [[0, 1]]}, "[0, 1] is not a comparison"),
        (RANKING, {**GOOD, "ranks": None, "comparisons": [[0, "1", 0.5]]}, "is not a comparison"),
        (
            RANKING,
            {**GOOD, "ranks": None, "comparisons": [[0, 5, 0.5]]},
            "does not name two of 2 completions",
        ),
        (RANKING, {**GOOD, "ranks": None, "comparisons": [[0, 1, -0.1]]}, "-0.1 is outside [0, 1]"),
        (RANKING, {**GOOD, "annotator": 7}, "`annotator` is a number, not text"),
        (RANKING, {"chosen": "no transcript", "rejected": "none"}, "`chosen` is text and not a transcript"),
        (RANKING, {"chosen": f"{ASSISTANT} La.", "rejected": f"{ASSISTANT} Lo."}, "not a transcript"),
        (
            RANKING,
            {"prompt": "Other", "chosen": [*TALK_MESSAGES, message("assistant", "La")], "rejected": "No"},
            "the messages of `chosen` before the answer are not `prompt`",
        ),
        (DEMONSTRATION, {"prompt": "p"}, "the record has no `completion`"),
        (DEMONSTRATION, {"prompt": "p", "completion": None}, "3: `completion` is null\n  Fill it in"),
        (DEMONSTRATION, {"question": None, "answer": "a"}, "3: `question` is null\n  Fill it in"),
        (
            DEMONSTRATION,
            {"messages": [{"role": "user", "content": 5}]},
            "`content` of message 1 of `messages` is a number",
        ),
        (DEMONSTRATION, {"text": "p"}, "the record has no known schema"),
        (DEMONSTRATION, {"prompt": 5, "completion": "c"}, "`prompt` is a number, not text or messages"),
        (DEMONSTRATION, {"prompt": "p", "completion": {"a": 1}}, "`completion` is an object, not text"),
        (DEMONSTRATION, {"prompt": "\ud800", "completion": "c"}, "`prompt` holds a lone surrogate"),
        (DEMONSTRATION, {"messages": []}, "`messages` is an empty list"),
        (DEMONSTRATION, {"messages": ["Hi"]}, "message 1 of `messages` is text"),
        (DEMONSTRATION, {"messages": [{"role": "user"}]}, "message 1 of `messages` has no `content`"),
        (
            PROMPT,
            {"messages": [message("user", "Hi"), {"role": 3, "content": ""}]},
            "`role` of message 2 of `messages`",
        ),
        (PROMPT, {"answer": "So."}, "the record has no known schema"),
        (PROMPT, ["p"], "the record is a list, not an object"),
        (PROMPT, "p", "the record is text, not an object"),
        (PROMPT, None, "the record is null, not an object"),
    ],
)
def test_a_malformed_record_is_named_by_file_and_line(
    tmp_path: Path, read: Read, row: Any, message: str
) -> None:
    good = {**GOOD, "completion": "c"}
    path = jsonl(tmp_path, good, good, row, good)
    assert error_of(read, path).startswith(f"{path}, line 3: ")
    assert message in error_of(read, path)


def test_a_line_that_is_not_json_is_named_also_after_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n\n  \n{"prompt": "b",}\n')
    assert f"{path}, line 4: not valid JSON at column 16" in error_of(PROMPT, str(path))


def test_a_record_knows_where_it_was_read_and_is_the_same_anywhere_else(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "a"})
    (first, second), _ = read_prompts([SourceSettings(path=path)], seed=0, run_folder=tmp_path)
    assert (first.where, second.where) == (f"{path}, line 1", f"{path}, line 2")
    assert first == second == Prompt(prompt="a")


@pytest.mark.parametrize("line", ['{"prompt": "b"', '{"prompt": "b",'])
def test_a_line_that_breaks_off_is_named_once(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "c"}}\n', newline="\r\n")
    found = error_of(PROMPT, str(path))
    assert f"{path}, line 2: not valid JSON at column {len(line) + 1}" in found
    assert len(re.findall(r"line \d", found)) == 1


def test_bytes_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    assert f"{path}, line 2: this is not UTF-8" in error_of(PROMPT, str(path))


@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".json", ".csv"]))
def test_no_bytes_whatever_cause_another_error_than_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"data{suffix}"
    path.write_bytes(content)
    assert str(path) in error_of(PROMPT, str(path), columns={"prompt": "no such column"})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(["", "a", "F", TALK, TALK + ASSISTANT]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["prompt", "completion", "completions", "ranks", "comparisons", "probability", "chosen"]
)


@pytest.mark.parametrize("read", [DEMONSTRATION, RANKING, PROMPT])
@pytest.mark.parametrize("transcripts", ["text", "messages"])
def test_no_json_whatever_causes_another_error_than_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, read: Read, transcripts: str
) -> None:
    path = tmp_path_factory.mktemp("json") / "data.jsonl"

    @given(st.dictionaries(FIELDS | st.just("rejected") | st.just("messages"), JSON))
    def check(row: dict[str, Any]) -> None:
        path.write_text(json.dumps(row))
        with suppress(UserError):
            records, counts = read_with_counts(read, str(path), transcripts=transcripts)
            assert len(records) == counts.used() == 1

    check()

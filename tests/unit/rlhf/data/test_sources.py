import csv
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.counts import RecordCounts
from rlhf.data.records import Demonstration, Message, Prompt, Ranking, Record, write_jsonl
from rlhf.data.sources import (
    read_demonstrations,
    read_prompts,
    read_rankings,
    source_fingerprints,
    split_by_prompt,
)
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings

REPOSITORY = Path(__file__).parents[4]
HH = REPOSITORY.parent / "shared/data/hh-harmless/pairs.jsonl"
GSM8K = REPOSITORY.parent / "shared/data/gsm8k/demonstrations.jsonl"
needs_hh = pytest.mark.skipif(not HH.is_file(), reason="the HH-RLHF file is not next to the repository")
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_file(), reason="the GSM8K file is not next to the repository")

Read = Callable[..., tuple[list[Any], RecordCounts]]
DEMONSTRATION, RANKING, PROMPT = read_demonstrations, read_rankings, read_prompts

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TALK = f"{HUMAN} Hello.{ASSISTANT} Hi!{HUMAN} Sing."
TURNS = (Message("user", "Hello."), Message("assistant", "Hi!"), Message("user", "Sing."))


def message(role: str, content: str | None) -> dict[str, str | None]:
    return {"role": role, "content": content}


TALK_MESSAGES = [message(turn.role, turn.content) for turn in TURNS]


def jsonl(folder: Path, *rows: Any, name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_with_account(read: Read, path: str, **settings: Any) -> tuple[list[Any], RecordCounts]:
    return read([SourceSettings(path=path, **settings)], seed=0, run_folder=Path("runs/r"))


def read_one(read: Read, folder: Path, row: dict[str, Any], **settings: Any) -> Any:
    records, _ = read_with_account(read, jsonl(folder, row), **settings)
    assert len(records) == 1
    return records[0]


def complaint(read: Read, path: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_with_account(read, path, **settings)
    assert caught.value.fix
    return str(caught.value)


# Shapes


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "2 + 2 =", "completion": " 4"}, "2 + 2 =", " 4"),
        ({"prompt": "Hi", "completion": [message("assistant", "Ho")]}, "Hi", "Ho"),
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
            {"prompt": "p", "chosen": "good", "rejected": "bad", "probability": None},
            Ranking(prompt="p", completions=("good", "bad"), ranks=(1, 2)),
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


# Columns and templates


def test_a_column_stands_for_a_field_and_beats_one_of_that_name(tmp_path: Path) -> None:
    row = {"prompt": "wrong", "q": "Why?", "completion": "So."}
    assert read_one(DEMONSTRATION, tmp_path, row, columns={"prompt": "q"}).prompt == "Why?"


def test_an_hh_row_is_a_demonstration_of_the_side_that_a_column_names(tmp_path: Path) -> None:
    row = {"chosen": f"{TALK}{ASSISTANT} La.", "rejected": f"{TALK}{ASSISTANT} No."}
    assert read_one(DEMONSTRATION, tmp_path, row, columns={"transcript": "rejected"}).completion == " No."


def test_a_template_is_filled_with_columns(tmp_path: Path) -> None:
    row = {"q": "{x}", "n": 3, "a": "So.", "odd.name[0]": "odd"}
    settings = {"templates": {"prompt": "{{{n}}} {q} {odd.name[0]}?", "completion": " {a}"}}
    record = read_one(DEMONSTRATION, tmp_path, row, **settings)
    assert record == Demonstration(prompt="{3} {x} odd?", completion=" So.")


@pytest.mark.parametrize("template", ["{q.__class__}", "{q[0]}", "{missing}"])
def test_a_template_sees_columns_and_nothing_behind_them(tmp_path: Path, template: str) -> None:
    path = jsonl(tmp_path, {"q": "Why?"})
    message = complaint(PROMPT, path, templates={"prompt": template})
    assert (
        f"{path}, line 1: the record has no column `{template[1:-1]}`, which `templates.prompt` names"
        in message
    )
    assert "The record has: `q`." in message


@pytest.mark.parametrize("template", ["{}", "{q!r}", "{q:>9}", "{q", "q}"])
def test_a_malformed_template_is_refused_before_any_row(tmp_path: Path, template: str) -> None:
    path = jsonl(tmp_path, "not even an object")
    message = complaint(PROMPT, path, templates={"prompt": template})
    assert f"source {path}: `templates.prompt`" in message
    assert "{column}" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"promt": "q"}}, "Did you mean `prompt`?"),
        ({"columns": {"zzz": "q"}}, "Fields here: "),
        ({"columns": {"prompt": "q"}, "templates": {"prompt": "{q}"}}, "under both"),
        (
            {"columns": {"question": "q", "instruction": "q"}},
            "the fields question, instruction do not make one",
        ),
    ],
)
def test_a_field_that_does_not_exist_or_fit_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    assert message in complaint(DEMONSTRATION, jsonl(tmp_path, {"q": "Why?"}), **settings)


def test_a_null_in_a_named_column_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"q": None})
    assert "line 1: column `q`, which `columns.prompt` names, is null" in complaint(
        PROMPT, path, columns={"prompt": "q"}
    )


def test_a_list_cannot_go_into_a_template(tmp_path: Path) -> None:
    assert "is a list" in complaint(PROMPT, jsonl(tmp_path, {"q": ["x"]}), templates={"prompt": "{q}"})


# Malformed records


GOOD = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}


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
            {"messages": [message("user", None)]},
            "`content` of message 1 of `messages` is null",
        ),
        (DEMONSTRATION, {"text": "p"}, "the record has no known schema"),
        (DEMONSTRATION, {"prompt": 5, "completion": "c"}, "`prompt` is a number, not text or messages"),
        (DEMONSTRATION, {"prompt": "p", "completion": {"a": 1}}, "`completion` is an object, not text"),
        (DEMONSTRATION, {"prompt": "\ud800", "completion": "c"}, "`prompt` holds a lone surrogate"),
        (DEMONSTRATION, {"messages": TALK_MESSAGES}, "the last message of `messages` is by `user`"),
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
    assert complaint(read, path).startswith(f"{path}, line 3: ")
    assert message in complaint(read, path)


def test_a_line_that_is_not_json_is_named_also_after_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n\n  \n{"prompt": "b",}\n')
    assert f"{path}, line 4: not valid JSON at column 16" in complaint(PROMPT, str(path))


def test_a_record_knows_where_it_was_read_and_is_the_same_anywhere_else(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "a"})
    (first, second), _ = read_prompts([SourceSettings(path=path)], seed=0, run_folder=tmp_path)
    assert (first.where, second.where) == (f"{path}, line 1", f"{path}, line 2")
    assert first == second == Prompt(prompt="a")


@pytest.mark.parametrize("line", ['{"prompt": "b"', '{"prompt": "b",'])
def test_a_line_that_breaks_off_is_named_once(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "c"}}\n', newline="\r\n")
    found = complaint(PROMPT, str(path))
    assert f"{path}, line 2: not valid JSON at column {len(line) + 1}" in found
    assert len(re.findall(r"line \d", found)) == 1


def test_bytes_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    assert f"{path}, line 2: this is not UTF-8" in complaint(PROMPT, str(path))


@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".json", ".csv"]))
def test_no_bytes_whatever_cause_another_error_than_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"data{suffix}"
    path.write_bytes(content)
    assert str(path) in complaint(PROMPT, str(path), columns={"prompt": "no such column"})


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
            records, counts = read_with_account(read, str(path), transcripts=transcripts)
            assert len(records) == counts.used() == 1

    check()


# Files


def test_an_object_a_line_or_a_list_of_objects_make_a_json_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "NA"}]
    lines = jsonl(tmp_path, *rows, name="lines.json")
    listed = tmp_path / "list.json"
    listed.write_bytes(b"\xef\xbb\xbf\n " + json.dumps(rows, indent=1).encode())
    for path in (lines, str(listed)):
        assert [record.prompt for record in read_with_account(PROMPT, path)[0]] == ["a", "NA"]


def test_a_bad_record_of_a_json_list_is_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"prompt": "a"}, {"prompt": 3}]))
    assert complaint(PROMPT, str(path)).startswith(f"{path}, record 2: ")


def test_a_json_list_that_does_not_parse_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('[{"prompt": "a"},\n{"prompt": "b"')
    assert f"{path}: not valid JSON at line 2, column" in complaint(PROMPT, str(path))


def csv_file(folder: Path, *rows: Sequence[str]) -> str:
    path = folder / "data.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def test_csv_cells_are_text_to_the_letter(tmp_path: Path) -> None:
    texts = ["007", "NA", "null", "1e5", 'a "quoted"\nsecond line, with comma', " spaces ", "x" * 200_000]
    path = csv_file(tmp_path, ["prompt", "other"], *([text, ""] for text in texts))
    assert [record.prompt for record in read_with_account(PROMPT, path)[0]] == texts


def test_csv_holds_lists_as_json(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path,
        ["prompt", "completions", "ranks", "annotator"],
        ["p", '["a", "b"]', '[1, "F"]', ""],
        ["q", '["a", "b"]', '["2", "1"]', "ann"],
    )
    assert read_with_account(RANKING, path)[0] == [
        Ranking(prompt="p", completions=("a", "b"), ranks=(1, "F")),
        Ranking(prompt="q", completions=("a", "b"), ranks=(2, 1), annotator="ann"),
    ]


def test_an_empty_probability_in_csv_is_none(tmp_path: Path) -> None:
    rows = [["p", "a", "b", ""], ["p", "a", "b", "0.75"]]
    path = csv_file(tmp_path, ["prompt", "chosen", "rejected", "probability"], *rows)
    hard, soft = read_with_account(RANKING, path)[0]
    assert (hard.ranks, soft.comparisons) == ((1, 2), ((0, 1, 0.75),))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["prompt", "chosen", "rejected"], ["a", "b", "c"], ["b"]], "row 2: not one cell per column"),
        ([["prompt", "b"], ["a", "1", "2"]], "row 1: not one cell per column"),
        ([["prompt", "prompt"], ["a", "1"]], "the header: a column has no name, or two have the same"),
        (
            [["prompt", "completions", "ranks"], ["a", "b", "c"]],
            "row 1: `completions` is not JSON at column 1 of the cell",
        ),
        ([["prompt", "completions", "ranks"], ["a", "", "[1]"]], "row 1: `completions` is empty"),
    ],
)
def test_a_bad_row_of_csv_is_named_by_number(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    path = csv_file(tmp_path, *rows)
    assert f"{path}, {message}" in complaint(RANKING, path)


def test_csv_with_an_open_quote_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('prompt\na\n"b\n')
    assert f"{path}, row 2: not valid CSV" in complaint(PROMPT, str(path))


def parquet(path: Path, columns: dict[str, list[Any]]) -> str:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table(columns), path)
    return str(path)


def test_parquet_is_read_and_leaves_nothing_next_to_it(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "prompt": [TALK_MESSAGES, TALK_MESSAGES],
        "completions": [["a", "b"], ["c", "d"]],
        "ranks": [["1", "F"], ["2", "1"]],
        "annotator": ["ann", None],
    }
    path = parquet(tmp_path / "data.parquet", columns)
    records, counts = read_with_account(RANKING, path)
    assert records == [
        Ranking(prompt=TURNS, completions=("a", "b"), ranks=(1, "F"), annotator="ann"),
        Ranking(prompt=TURNS, completions=("c", "d"), ranks=(2, 1)),
    ]
    assert counts.read() == 2
    assert [file.name for file in tmp_path.iterdir()] == ["data.parquet"]


def test_a_bad_row_of_parquet_is_named_by_number(tmp_path: Path) -> None:
    path = parquet(tmp_path / "data.parquet", {"prompt": ["a", None]})
    assert f"{path}, row 2: `prompt` is null" in complaint(PROMPT, path)


@pytest.mark.filterwarnings("default")
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_text("hello")
    assert f"{path}: not readable as Parquet" in complaint(PROMPT, str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "there is no such file"),
        ("owner/missing.jsonl", "there is no such file"),
        ("missing.txt", "there is no such file"),
        (".", "this is a folder, not a file"),
        ("notes.txt", "files that end in `.txt` cannot be read"),
    ],
)
def test_a_path_that_is_no_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    path = str(tmp_path / name)
    assert complaint(PROMPT, path).startswith(f"{tmp_path / name}: {message}")
    assert ".jsonl" in complaint(PROMPT, path)
    with pytest.raises(UserError, match=re.escape(message)):
        source_fingerprints("prompts", [SourceSettings(path=path)], run_folder=tmp_path)


def test_a_hub_data_set_that_cannot_be_loaded_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*arguments: Any, **settings: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert (
        complaint(PROMPT, "owner/name")
        == "owner/name: this data set cannot be loaded from the hub (Couldn't reach the hub)\n"
        "  Check `path`, `name`, `split`, `revision`, the network, and whether HF_HUB_OFFLINE is set; "
        "or give the path of a local file."
    )


def test_a_hub_data_set_is_asked_for_by_id_subset_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **settings: Any) -> list[dict[str, Any]]:
        asked.append((arguments, settings))
        assert datasets.are_progress_bars_disabled()
        return [{"prompt": "a"}, {"prompt": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    shown_before = not datasets.are_progress_bars_disabled()
    records, counts = read_with_account(PROMPT, "owner/name", name="subset", split="test", revision="abc")
    assert [record.prompt for record in records] == ["a", "b"]
    assert asked == [(("owner/name", "subset"), {"split": "test", "revision": "abc"})]
    assert [*counts.to_json()["sources"]] == ["owner/name (subset, test)"]
    assert datasets.are_progress_bars_disabled() != shown_before


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert f"{tmp_path / name}: there is no record in it" in complaint(PROMPT, str(tmp_path / name))


def test_the_run_folder_is_put_into_paths(tmp_path: Path) -> None:
    jsonl(tmp_path, {"prompt": "a"})
    source = SourceSettings(path="{run}/data.jsonl")
    records, counts = read_prompts([source], seed=0, run_folder=tmp_path)
    assert len(records) == 1
    assert [*counts.to_json()["sources"]] == ["{run}/data.jsonl"]


def test_a_fingerprint_is_the_hash_of_the_file_or_the_revision_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"abc")
    paths = ["{run}/data.jsonl", "owner/name", "owner/pinned"]
    sources = [SourceSettings(path=path, revision="v1" if "pinned" in path else None) for path in paths]
    assert source_fingerprints("prompts", sources, run_folder=tmp_path) == {
        "prompts.0": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "prompts.1": "hub:owner/name@main",
        "prompts.2": "hub:owner/pinned@v1",
    }


def test_moved_data_are_the_same_data(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}"} for number in range(40)]
    prints, prompts = [], []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        path = jsonl(tmp_path / folder, *rows)
        sources = [SourceSettings(path=path, weight=weight) for weight in (1.0, 3.0)]
        prints.append(source_fingerprints("prompts", sources, run_folder=tmp_path))
        prompts.append([record.prompt for record in read_prompts(sources, seed=1, run_folder=tmp_path)[0]])
    assert prints[0] == prints[1]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize(
    ("read", "records"),
    [
        (PROMPT, [Prompt(prompt="a\n"), Prompt(prompt=TURNS)]),
        (
            DEMONSTRATION,
            [Demonstration(prompt=" a", completion=" b "), Demonstration(prompt=TURNS, completion="c")],
        ),
        (
            RANKING,
            [
                Ranking(prompt="p", completions=("a", "", "b"), ranks=(1, 1, "F"), annotator="ann"),
                Ranking(prompt=TURNS, completions=("a", "b"), comparisons=((1, 0, 0.25),)),
            ],
        ),
    ],
)
def test_what_is_written_is_read_back_equal(tmp_path: Path, read: Read, records: list[Record]) -> None:
    write_jsonl(tmp_path / "data.jsonl", records)
    assert read_with_account(read, str(tmp_path / "data.jsonl"))[0] == records


# What is dropped, and the account


@pytest.mark.parametrize(
    ("read", "row", "reason"),
    [
        (PROMPT, {"prompt": " \n"}, "empty prompt"),
        (PROMPT, {"question": ""}, "empty prompt"),
        (PROMPT, {"messages": [message("assistant", "Hi")]}, "empty prompt"),
        (DEMONSTRATION, {"prompt": "p", "completion": " "}, "empty completion"),
        (DEMONSTRATION, {"transcript": TALK}, "transcript ends with a human turn"),
        (DEMONSTRATION, {"messages": [message("assistant", "Hi")]}, "empty prompt"),
        (RANKING, {"prompt": "p", "chosen": "a", "rejected": ""}, "empty completion"),
        (RANKING, {"prompt": "p", "chosen": "a", "rejected": "a"}, "completions identical"),
        (
            RANKING,
            {"prompt": "p", "completions": ["a", "a", "a"], "ranks": [1, 2, 3]},
            "completions identical",
        ),
        (
            RANKING,
            {"chosen": f"{TALK}{ASSISTANT} La.", "rejected": f"{TALK}!{ASSISTANT} No."},
            "prompts differ",
        ),
        (
            RANKING,
            {
                "chosen": [*TALK_MESSAGES, message("assistant", "La")],
                "rejected": [*TALK_MESSAGES[:1], message("assistant", "No")],
            },
            "prompts differ",
        ),
    ],
)
@pytest.mark.parametrize("transcripts", ["text", "messages"])
def test_a_row_of_no_use_is_counted_under_its_reason(
    tmp_path: Path, read: Read, row: dict[str, Any], reason: str, transcripts: str
) -> None:
    good = {**GOOD, "completion": "c"}
    path = jsonl(tmp_path, good, row)
    records, counts = read_with_account(read, path, transcripts=transcripts)
    assert len(records) == 1
    expected = {"read": 2, "used": 1, "dropped": {reason: 1}, "truncated": 0}
    assert counts.to_json() == {"sources": {path: expected}, "steps": {}, "total": expected}
    assert f"`{reason}`" in (REPOSITORY / "docs/data-formats.md").read_text()


def test_a_source_without_a_usable_record_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": ""}, {"prompt": " "})
    assert f"{path}: none of its 2 records can be used (empty prompt: 2)" in complaint(PROMPT, path)


def test_records_beyond_the_limit_are_counted_and_not_looked_at(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b"}, "malformed", "malformed")
    records, counts = read_with_account(PROMPT, path, limit=2)
    assert [record.prompt for record in records] == ["a", "b"]
    assert (counts.read(), counts.used(), counts.dropped()) == (4, 2, {"beyond the limit": 2})


def test_duplicates_stay(tmp_path: Path) -> None:
    assert len(read_with_account(PROMPT, jsonl(tmp_path, *[{"prompt": "a"}] * 3))[0]) == 3


# Mixtures


def mixture(
    folder: Path, seed: int, *sizes_and_weights: tuple[int, float | None]
) -> tuple[list[str], RecordCounts]:
    sources = []
    for number, (size, weight) in enumerate(sizes_and_weights):
        path = jsonl(folder, *({"prompt": f"{number}-{i}"} for i in range(size)), name=f"{number}.jsonl")
        sources.append(SourceSettings(path=path, weight=weight))
    records, counts = read_prompts(sources, seed=seed, run_folder=folder)
    return [str(record.prompt) for record in records], counts


def test_without_weights_everything_is_used_in_order(tmp_path: Path) -> None:
    assert mixture(tmp_path, 0, (2, None), (1, None))[0] == ["0-0", "0-1", "1-0"]


def test_weights_are_proportions_of_the_largest_mixture_that_repeats_nothing(tmp_path: Path) -> None:
    prompts, counts = mixture(tmp_path, 0, (30, 3), (100, 1))
    assert sum(prompt.startswith("0-") for prompt in prompts) == 30
    assert sum(prompt.startswith("1-") for prompt in prompts) == 10
    assert counts.dropped() == {"left out by weights": 90}


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 10)), min_size=1, max_size=4), st.integers(0, 5))
def test_a_mixture_repeats_nothing_and_keeps_its_shares(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, float]], seed: int
) -> None:
    prompts, counts = mixture(tmp_path_factory.mktemp("mix"), seed, *parts)
    assert len(set(prompts)) == len(prompts) == counts.used()
    takes = [sum(prompt.startswith(f"{number}-") for prompt in prompts) for number in range(len(parts))]
    assert any(take == size for take, (size, _) in zip(takes, parts, strict=True))
    scale = min(size / weight for size, weight in parts)
    assert all(
        abs(take - scale * weight) <= 0.5 + 1e-9 for take, (_, weight) in zip(takes, parts, strict=True)
    )


def test_the_seed_chooses_what_a_mixture_leaves_out(tmp_path: Path) -> None:
    parts = ((5, 1.0), (100, 1.0))
    assert mixture(tmp_path, 1, *parts)[0] == mixture(tmp_path, 1, *parts)[0]
    assert mixture(tmp_path, 1, *parts)[0] != mixture(tmp_path, 2, *parts)[0]


def test_a_weight_for_one_source_only_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weight, and others have one"):
        mixture(tmp_path, 0, (2, 1.0), (2, None))


def test_no_source_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="no source of data"):
        read_prompts([], seed=0, run_folder=Path("runs/r"))


# Splits

RECORDS = st.lists(
    st.builds(Demonstration, prompt=st.sampled_from("abcdefgh"), completion=st.sampled_from("xyz")),
    max_size=20,
)
FRACTIONS = st.floats(0.01, 0.99)


@given(RECORDS, FRACTIONS, st.integers(0, 99))
def test_a_split_loses_nothing_and_has_no_prompt_on_both_sides(
    records: list[Demonstration], fraction: float, seed: int
) -> None:
    train, held_out = split_by_prompt(records, fraction=fraction, seed=seed)
    assert sorted(map(repr, train + held_out)) == sorted(map(repr, records))
    prompts = {record.prompt for record in train}, {record.prompt for record in held_out}
    assert not prompts[0] & prompts[1]
    if len(prompts[0] | prompts[1]) >= 2:
        assert train
        assert held_out


@given(RECORDS, FRACTIONS, st.integers(0, 99), st.randoms())
def test_order_never_changes_a_side(
    records: list[Demonstration], fraction: float, seed: int, random: Any
) -> None:
    before = {r.prompt for r in split_by_prompt(records, fraction=fraction, seed=seed)[1]}
    random.shuffle(records)
    assert {r.prompt for r in split_by_prompt(records, fraction=fraction, seed=seed)[1]} == before


def test_a_prompt_is_on_the_same_side_in_every_kind_and_every_company() -> None:
    prompts = [str(number) for number in range(1000)]
    sides = split_by_prompt([Prompt(prompt=p) for p in prompts], fraction=0.2, seed=3)
    some = split_by_prompt(
        [Ranking(prompt=p, completions=("a", "b"), ranks=(1, 2)) for p in prompts[::2]], fraction=0.2, seed=3
    )
    held_out = {record.prompt for record in sides[1]}
    assert {record.prompt for record in some[1]} == held_out & set(prompts[::2])
    assert 160 < len(held_out) < 240
    assert held_out <= {r.prompt for r in split_by_prompt(sides[0] + sides[1], fraction=0.4, seed=3)[1]}
    assert held_out != {r.prompt for r in split_by_prompt(sides[0] + sides[1], fraction=0.2, seed=4)[1]}


def test_without_a_fraction_or_a_second_prompt_nothing_is_held_out() -> None:
    records = [Prompt(prompt="a"), Prompt(prompt="b")]
    assert split_by_prompt(records, fraction=0.0, seed=0) == (records, [])
    assert [len(side) for side in split_by_prompt(records[:1] * 3, fraction=1e-9, seed=0)] == [3, 0]


# Real files


@needs_hh
@pytest.mark.parametrize("transcripts", ["text", "messages"])
def test_every_pair_of_hh_is_accounted_for(transcripts: str) -> None:
    records, counts = read_with_account(RANKING, str(HH), transcripts=transcripts)
    expected = {"empty completion": 3, "prompts differ": 3}
    assert (counts.read(), len(records), counts.used(), counts.dropped()) == (1653, 1647, 1647, expected)
    for record in records:
        assert record.ranks == (1, 2)
        assert all(completion.strip() for completion in record.completions)
        if transcripts == "messages":
            assert [turn.role for turn in record.prompt][-1] == "user"


@needs_hh
def test_prompt_and_completions_of_hh_read_as_its_transcripts_do() -> None:
    rows = [json.loads(line) for line in HH.read_text(encoding="utf-8").splitlines()]
    known = {
        re.sub(r"Assistant: +", "Assistant: ", row[side]).rstrip()
        for row in rows
        for side in ("chosen", "rejected")
    }
    for record in read_with_account(RANKING, str(HH))[0]:
        for completion in record.completions:
            assert re.sub(r"Assistant: +", "Assistant: ", record.prompt + completion) in known


@needs_hh
def test_hh_serves_all_three_stages_with_the_same_prompts() -> None:
    columns = {"transcript": "chosen"}
    demonstrations, counts = read_with_account(DEMONSTRATION, str(HH), columns=columns)
    prompts, _ = read_with_account(PROMPT, str(HH), columns=columns)
    rankings, _ = read_with_account(RANKING, str(HH))
    assert (len(demonstrations), counts.dropped(), len(prompts)) == (1650, {"empty completion": 3}, 1653)
    assert {r.prompt for r in rankings} <= {d.prompt for d in demonstrations} <= {p.prompt for p in prompts}


@needs_gsm8k
def test_gsm8k_is_read_without_a_word_of_configuration() -> None:
    records, counts = read_with_account(DEMONSTRATION, str(GSM8K))
    first = json.loads(GSM8K.read_text(encoding="utf-8").split("\n")[0])
    assert records[0] == Demonstration(prompt=first["question"] + "\n\n", completion=first["answer"])
    assert (counts.read(), counts.used()) == (1319, 1319)


def test_the_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    table = (REPOSITORY / "docs/data-formats.md").read_text(encoding="utf-8")
    examples = re.findall(r"^\| (\w+) \| .* \| `(\{.*\})` \|$", table, re.MULTILINE)
    readers: dict[str, Read] = {"demonstration": DEMONSTRATION, "ranking": RANKING, "prompt": PROMPT}
    assert {kind for kind, _ in examples} == set(readers)
    for kind, example in examples:
        read_one(readers[kind], tmp_path, json.loads(example))

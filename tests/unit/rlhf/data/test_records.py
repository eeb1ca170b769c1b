import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.counts import RecordCounts
from rlhf.data.records import (
    Demonstration,
    Message,
    Prompt,
    Ranking,
    Record,
    Turns,
    prompt_key,
    to_json,
    write_jsonl,
)
from rlhf.errors import UserError

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
PROMPTS = st.one_of(
    TEXTS, st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXTS), max_size=3).map(tuple)
)


def ranking(**fields: Any) -> Ranking:
    return Ranking(**{"prompt": "p", "completions": ("a", "b"), **fields})


def error_of(**fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        ranking(**fields)
    return str(caught.value)


def test_ties_and_failed_completions_are_ranks() -> None:
    assert ranking(completions=("a", "b", "c", "d"), ranks=(1, 1, "F", "F")).ranks == (1, 1, "F", "F")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"completions": ("a",), "ranks": (1,)}, "at least 2 completions (1 given)"),
        ({"completions": (), "ranks": ()}, "at least 2 completions (0 given)"),
        ({}, "neither `ranks` nor `comparisons`"),
        ({"ranks": (1, 2), "comparisons": ((0, 1, 0.5),)}, "both `ranks` and `comparisons`"),
        (
            {"completions": ("a", "b", "c", "d"), "ranks": (1, 2, 3)},
            "completion 4 has no rank (4 completions, 3",
        ),
        ({"ranks": (1, 2, 3)}, "3 ranks for 2 completions"),
        ({"ranks": (0, 1)}, "completion 1 has rank 0"),
        ({"ranks": (1, True)}, "completion 2 has rank True"),
        ({"ranks": (1, 2.0)}, "completion 2 has rank 2.0"),
        ({"ranks": (1, "f")}, "completion 2 has rank 'f'"),
        ({"ranks": (1, None)}, "completion 2 has rank None"),
        ({"comparisons": ()}, "`comparisons` is empty"),
        ({"comparisons": ((0, 0, 0.5),)}, "comparison [0, 0] does not name two of 2 completions"),
        ({"comparisons": ((0, 2, 0.5),)}, "comparison [0, 2] does not name two of 2 completions"),
        ({"comparisons": ((-1, 0, 0.5),)}, "comparison [-1, 0] does not name two"),
        ({"comparisons": ((0, 1, 1.5),)}, "probability 1.5 is outside [0, 1]"),
        ({"comparisons": ((0, 1, float("nan")),)}, "probability nan is outside [0, 1]"),
    ],
)
def test_a_ranking_that_makes_no_sense_cannot_be_made(fields: dict[str, Any], message: str) -> None:
    assert message in error_of(**fields)


@given(PROMPTS, PROMPTS)
def test_prompt_keys_are_equal_exactly_for_equal_prompts(one: str | Turns, other: str | Turns) -> None:
    assert (prompt_key(one) == prompt_key(other)) == (one == other)
    assert prompt_key(one).isascii()


def test_a_text_that_looks_like_messages_has_another_key_than_the_messages() -> None:
    messages = (Message("user", "hi"),)
    assert prompt_key(prompt_key(messages)) != prompt_key(messages)


def test_json_leaves_out_what_is_not_set() -> None:
    assert to_json(ranking(ranks=(2, "F"))) == {"prompt": "p", "completions": ["a", "b"], "ranks": [2, "F"]}
    assert to_json(ranking(comparisons=((0, 1, 0.8),), annotator="ann")) == {
        "prompt": "p",
        "completions": ["a", "b"],
        "comparisons": [[0, 1, 0.8]],
        "annotator": "ann",
    }
    assert to_json(Prompt(prompt=(Message("user", "hi"),))) == {"prompt": [{"role": "user", "content": "hi"}]}


def test_a_file_has_one_line_a_record_whatever_the_text_holds(tmp_path: Path) -> None:
    texts = ["two\nlines", "paragraph\u2029separator", "carriage\rreturn", "grün 🙂"]
    path = tmp_path / "new" / "folder" / "records.jsonl"
    write_jsonl(path, [Demonstration(prompt=text, completion=text) for text in texts])
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line)["completion"] for line in lines] == texts
    assert "grün 🙂".encode() in path.read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_jsonl(path, [Prompt(prompt="old")])

    def records() -> Any:
        yield Prompt(prompt="new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, records())
    assert path.read_text() == '{"prompt": "old"}\n'
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["empty", "differ"]), st.integers(0, 9))))
def test_read_is_used_plus_dropped_for_every_source_and_in_total(drops: list[tuple[str, str, int]]) -> None:
    counts = RecordCounts()
    for source in "ab":
        counts.add(source, "read", 1000)
    for source, reason, n in drops:
        counts.add(source, reason, n)
    counts.add("a", "truncated", 7)
    counts.add("length policy", "too long", 5)
    for summary in [*counts.to_json()["sources"].values(), counts.to_json()["total"]]:
        assert summary["read"] == summary["used"] + sum(summary["dropped"].values())
    assert counts.used("a") + counts.used("b") - 5 == counts.used()
    assert counts.truncated() == 7


def test_merged_counts_add_up_and_the_second_stays_as_it_was() -> None:
    one, other = RecordCounts(), RecordCounts()
    one.add("a", "read", 3)
    other.add("a", "read", 2)
    other.add("a", "empty", 1)
    other.add("b", "read", 5)
    before = other.to_json()
    one.merge(other)
    one.add("b", "empty", 1)
    assert (one.read("a"), one.used("a"), one.read("b"), one.used("b")) == (5, 4, 5, 4)
    assert other.to_json() == before


def test_the_table_names_every_source_and_every_reason(capsys: pytest.CaptureFixture[str]) -> None:
    counts = RecordCounts()
    counts.add("data/[odd] name.jsonl", "read", 1653)
    counts.add("data/[odd] name.jsonl", "prompts differ", 3)
    counts.add("data/[odd] name.jsonl", "truncated", 4)
    counts.add("steps", "too long", 6)
    counts.print("Rankings")
    printed = capsys.readouterr().out
    for text in (
        "Rankings",
        "data/[odd] name.jsonl",
        "1,653",
        "1,650",
        "prompts differ: 3",
        "truncated: 4",
        "1,644",
    ):
        assert text in printed


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", ["rankings.jsonl", "demonstrations.jsonl", "x" * 40 + "/of-2026.parquet"])
def test_the_table_fits_its_width_and_breaks_no_name_that_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    counts = RecordCounts()
    source = f"configs/tiny/data/{name}"
    counts.add(source, "read", 2400)
    counts.add(source, "beyond the limit", 2320)
    counts.add("reward.rankings", "no comparison in group", 1)
    counts.print("reward: rankings")
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= width
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert source in "".join(row[0] for row in cells)
    assert any(row[0].endswith(name.rpartition("/")[2]) for row in cells)
    assert ["2,400", "80"] in [row[1:3] for row in cells]
    remarks = " ".join(row[3] for row in cells if row[3])
    assert "beyond the limit: 2,320" in remarks
    assert "no comparison in group: 1" in remarks


def test_a_table_without_sources_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    RecordCounts().print("nothing")
    assert "nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "record",
    [Prompt(prompt="p"), Demonstration(prompt="p", completion="c"), ranking(ranks=(1, 2))],
    ids=lambda record: type(record).__name__,
)
def test_records_are_frozen_and_hashable(record: Record) -> None:
    assert hash(record) == hash(record)
    with pytest.raises(AttributeError):
        record.prompt = "other"  # type: ignore[misc]

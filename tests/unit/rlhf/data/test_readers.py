import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.records import Demonstration, Prompt, Ranking, Record, write_jsonl
from rlhf.data.sources import source_fingerprints
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings
from tests.unit.rlhf.data.rows import (
    DEMONSTRATION,
    PROMPT,
    RANKING,
    TALK_MESSAGES,
    TURNS,
    Read,
    error_of,
    jsonl,
    read_with_counts,
)


def test_an_object_a_line_or_a_list_of_objects_make_a_json_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "NA"}]
    lines = jsonl(tmp_path, *rows, name="lines.json")
    listed = tmp_path / "list.json"
    listed.write_bytes(b"\xef\xbb\xbf\n " + json.dumps(rows, indent=1).encode())
    for path in (lines, str(listed)):
        assert [record.prompt for record in read_with_counts(PROMPT, path)[0]] == ["a", "NA"]


def test_a_bad_record_of_a_json_list_is_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"prompt": "a"}, {"prompt": 3}]))
    assert error_of(PROMPT, str(path)).startswith(f"{path}, record 2: ")


def test_a_json_list_that_does_not_parse_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('[{"prompt": "a"},\n{"prompt": "b"')
    assert f"{path}: not valid JSON at line 2, column" in error_of(PROMPT, str(path))


def csv_file(folder: Path, *rows: Sequence[str]) -> str:
    path = folder / "data.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def test_csv_cells_are_text_to_the_letter(tmp_path: Path) -> None:
    texts = ["007", "NA", "null", "1e5", 'a "quoted"\nsecond line, with comma', " spaces ", "x" * 200_000]
    path = csv_file(tmp_path, ["prompt", "other"], *([text, ""] for text in texts))
    assert [record.prompt for record in read_with_counts(PROMPT, path)[0]] == texts


def test_csv_holds_lists_as_json(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path,
        ["prompt", "completions", "ranks", "annotator"],
        ["p", '["a", "b"]', '[1, "F"]', ""],
        ["q", '["a", "b"]', '["2", "1"]', "ann"],
    )
    assert read_with_counts(RANKING, path)[0] == [
        Ranking(prompt="p", completions=("a", "b"), ranks=(1, "F")),
        Ranking(prompt="q", completions=("a", "b"), ranks=(2, 1), annotator="ann"),
    ]


def test_an_empty_probability_in_csv_is_none_and_no_hard_label(tmp_path: Path) -> None:
    rows = [["p", "a", "b", ""], ["p", "a", "b", "0.75"]]
    path = csv_file(tmp_path, ["prompt", "chosen", "rejected", "probability"], *rows)
    [soft], counts = read_with_counts(RANKING, path)
    assert soft.comparisons == ((0, 1, 0.75),)
    assert counts.dropped() == {"probability is null": 1}


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
    assert f"{path}, {message}" in error_of(RANKING, path)


def test_csv_with_an_open_quote_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('prompt\na\n"b\n')
    assert f"{path}, row 2: not valid CSV" in error_of(PROMPT, str(path))


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
    records, counts = read_with_counts(RANKING, path)
    assert records == [
        Ranking(prompt=TURNS, completions=("a", "b"), ranks=(1, "F"), annotator="ann"),
        Ranking(prompt=TURNS, completions=("c", "d"), ranks=(2, 1)),
    ]
    assert counts.read() == 2
    assert [file.name for file in tmp_path.iterdir()] == ["data.parquet"]


def test_a_bad_row_of_parquet_is_named_by_number(tmp_path: Path) -> None:
    path = parquet(tmp_path / "data.parquet", {"prompt": ["a", None]})
    assert f"{path}, row 2: `prompt` is null" in error_of(PROMPT, path)


@pytest.mark.filterwarnings("default")
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_text("hello")
    assert f"{path}: not readable as Parquet" in error_of(PROMPT, str(path))


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
    assert error_of(PROMPT, path).startswith(f"{tmp_path / name}: {message}")
    assert ".jsonl" in error_of(PROMPT, path)
    with pytest.raises(UserError, match=re.escape(message)):
        source_fingerprints("prompts", [SourceSettings(path=path)], run_folder=tmp_path)


def test_a_hub_data_set_that_cannot_be_loaded_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*arguments: Any, **settings: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert (
        error_of(PROMPT, "owner/name")
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
    records, counts = read_with_counts(PROMPT, "owner/name", name="subset", split="test", revision="abc")
    assert [record.prompt for record in records] == ["a", "b"]
    assert asked == [(("owner/name", "subset"), {"split": "test", "revision": "abc"})]
    assert [*counts.to_json()["sources"]] == ["owner/name (subset, test)"]
    assert datasets.are_progress_bars_disabled() != shown_before


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert f"{tmp_path / name}: there is no record in it" in error_of(PROMPT, str(tmp_path / name))


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
    assert read_with_counts(read, str(tmp_path / "data.jsonl"))[0] == records

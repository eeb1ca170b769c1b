import json
from pathlib import Path

import pytest

from benchmarks.report import commit_of, table, write_report


def test_a_table_has_as_many_cells_in_every_row() -> None:
    lines = table(["a", "b"], [["1", "2"], ["3", "4"]]).splitlines()
    assert [line.count("|") for line in lines] == [3, 3, 3, 3]


def test_the_json_says_all_and_the_markdown_what_was_printed(tmp_path: Path) -> None:
    data = {"title": "Größe", "rounds": [{"ours": {"laps": []}}]}
    write_report(data, "# Größe\n", tmp_path / "new", "size")
    assert json.loads((tmp_path / "new" / "size.json").read_text(encoding="utf-8")) == data
    assert (tmp_path / "new" / "size.md").read_text(encoding="utf-8") == "# Größe\n"


@pytest.mark.parametrize(
    ("commit", "dirty", "said"),
    [
        ("0123456789abcdef", True, "0123456789 with changes"),
        ("0123456789abcdef", False, "0123456789"),
        (None, None, "unknown"),
    ],
)
def test_a_commit_is_short_and_says_of_changes(commit: str | None, dirty: bool | None, said: str) -> None:
    assert commit_of({"commit": commit, "dirty": dirty}) == said

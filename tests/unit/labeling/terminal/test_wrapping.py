"""Rows of a text: none too wide, nothing lost, and no more work than somebody looks at."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from labeling.sanitize import sanitize
from labeling.terminal.wrapping import CHUNK, Document, Wrapped, wrap

LINES = st.text(st.sampled_from("ab  漢é👩‍🇩🇪שe\u0301") | st.characters(), max_size=120)


@given(LINES, st.integers(4, 40))
def test_no_row_is_too_wide_and_only_spaces_are_lost(text: str, width: int) -> None:
    line = sanitize(text).replace("\n", " ")
    rows = list(wrap(line, width))
    assert all(cell_len(row) <= width for row in rows)
    assert "".join(rows).replace(" ", "") == line.replace(" ", "")


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("one two three", ["one two", "three"]),
        ("onetwothree", ["onetwoth", "ree"]),
        ("  indented", ["  indent", "ed"]),
        ("漢字漢字漢字", ["漢字漢字", "漢字"]),
        ("漢字 漢字漢", ["漢字", "漢字漢"]),
        ("12345678 90", ["12345678", "90"]),
        ("", [""]),
    ],
)
def test_rows_by_hand(line: str, rows: list[str]) -> None:
    assert list(wrap(line, 8)) == rows


def test_a_text_in_parts_has_the_rows_of_the_whole() -> None:
    text = "word and другое слово\r\n" * 2000
    parts = Wrapped(text, 30)
    assert len(parts.rows) < 4 * CHUNK / 22
    while parts.num_left:
        parts.extend()
    assert parts.rows == [row for line in text.replace("\r", "").split("\n") for row in wrap(line, 30)]


def test_a_megabyte_costs_no_more_than_what_is_seen_of_it() -> None:
    texts = ("漢\x1b" * 500_000, "x" * 1_000_000, "y\n" * 500_000)
    started = time.process_time()
    document = Document(texts, 77)
    document.row(0, 3)
    # Of this process alone, whatever else the machine does; the whole takes several seconds.
    assert time.process_time() - started < 0.5
    assert document.row(1, document.end(1) - document.start(1) - 1).startswith("… 992,000 more characters")


def test_scrolling_to_the_end_of_a_part_goes_on_to_the_next() -> None:
    document = Document(("x" * 20_000, "short"), 100)
    before = document.height
    document.reach(0, 10)
    assert document.height == before
    document.reach(document.end(0) - 5, document.end(0))
    assert document.end(0) == 1 + 159 + 1  # the last row waits for what follows it
    document.reach(document.end(0) - 5, document.end(0))
    assert (document.end(0), document.locate(document.end(0) + 1)) == (1 + 200, (1, 1))

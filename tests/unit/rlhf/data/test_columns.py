from pathlib import Path
from typing import Any

import pytest

from rlhf.data.records import Demonstration
from tests.unit.rlhf.data.rows import ASSISTANT, DEMONSTRATION, PROMPT, TALK, error_of, jsonl, read_one


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
    message = error_of(PROMPT, path, templates={"prompt": template})
    assert (
        f"{path}, line 1: the record has no column `{template[1:-1]}`, which `templates.prompt` names"
        in message
    )
    assert "The record has: `q`." in message


@pytest.mark.parametrize("template", ["{}", "{q!r}", "{q:>9}", "{q", "q}"])
def test_a_malformed_template_is_refused_before_any_row(tmp_path: Path, template: str) -> None:
    path = jsonl(tmp_path, "not even an object")
    message = error_of(PROMPT, path, templates={"prompt": template})
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
    assert message in error_of(DEMONSTRATION, jsonl(tmp_path, {"q": "Why?"}), **settings)


def test_a_null_in_a_named_column_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"q": None})
    assert "line 1: column `q`, which `columns.prompt` names, is null" in error_of(
        PROMPT, path, columns={"prompt": "q"}
    )


def test_a_list_cannot_go_into_a_template(tmp_path: Path) -> None:
    assert "is a list" in error_of(PROMPT, jsonl(tmp_path, {"q": ["x"]}), templates={"prompt": "{q}"})

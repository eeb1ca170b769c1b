"""Files of completions to be ranked."""

from pathlib import Path

import pytest

from labeling.store.items import Item, read_items, write_items
from rlhf.data.records import Message
from rlhf.errors import UserError


def test_items_come_back_as_they_were_written(tmp_path: Path) -> None:
    items = [
        Item(prompt="Ein Tag. ", completions=("ä\u2028b", "", "c"), ended=(True, False, True), model="0f"),
        Item(prompt=(Message("user", "Hi"), Message("assistant", "Ho")), completions=("a", "b")),
    ]
    write_items(tmp_path / "samples.jsonl", items)
    assert read_items(tmp_path / "samples.jsonl") == items


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "p"', "not valid JSON"),
        ('["p"]', "not a prompt with completions"),
        ('{"prompt": "p"}', "not a prompt with completions"),
        ('{"prompt": 3, "completions": ["a", "b"]}', "`prompt` is a number"),
        ('{"prompt": "p", "completions": "ab"}', "`completions` is text, not a list"),
        ('{"prompt": "p", "completions": ["a"]}', "nothing to rank among 1 completions"),
        ('{"prompt": "p", "completions": ["a", 1]}', "completion 2 is a number"),
        ('{"prompt": "p", "completions": ["a", "b"], "ended": [true]}', "`ended` has 1 values for 2"),
        ('{"prompt": "p", "completions": ["a", "b"], "ended": [1, 0]}', "`ended` is not a list of true"),
        ('{"prompt": "p", "completions": ["a", "b"], "model": 7}', "`model` is a number"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"prompt": "p", "completions": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(UserError) as caught:
        read_items(path)
    assert what in caught.value.what
    assert caught.value.where == f"{path}, line 2"
    assert caught.value.fix


def test_an_empty_file_holds_nothing_to_rank(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(UserError, match="nothing to rank"):
        read_items(tmp_path / "samples.jsonl")

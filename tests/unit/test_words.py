"""Plain words: the field's terms in code, docs and messages, and none that only we would understand."""

import re
from pathlib import Path

import pytest

from tests.support.imports import PACKAGES, ROOT

PLAIN = {
    r"to the bit": "bitwise",
    r"hears? of": "receives",
    r"farewells?": "shutdown",
    r"anew": "again",
    r"complaints?": "error",
    r"doomed": "to_delete",
    r"testimony": "dispute summary",
    r"ballot": "draft",
    r"docket": "queue",
    r"workplace": "labeling session",
    r"lighten": "patch_lora_forward",
    r"goes on from": "resumes from",
}
"""A word that needs a dictionary → the one to write instead."""


def files() -> list[Path]:
    """What a reader of the project reads: its code and its pages. Data may say what they like."""
    folders = [*PACKAGES, "tests", "docs"]
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*found, *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "Makefile"]


def found(text: str) -> dict[str, str]:
    """The words of `text` that are not plain, each with the one to write."""
    return {word: plain for word, plain in PLAIN.items() if re.search(rf"\b{word}\b", text, re.IGNORECASE)}


def test_code_and_docs_use_plain_words() -> None:
    quoting = {Path(__file__), ROOT / "tests" / "unit" / "configs" / "test_tiny_data.py"}
    wrong: dict[str, dict[str, str]] = {}
    for path in files():
        words = found(path.read_text(encoding="utf-8"))
        if words and path not in quoting:
            wrong[str(path.relative_to(ROOT))] = words
    assert wrong == {}


@pytest.mark.parametrize(
    "text", ["The same weights, to the bit.", "it goes on from step 3", "def complaint():"]
)
def test_a_word_that_is_not_plain_is_found(text: str) -> None:
    assert found(text)

"""Scorers: what names one, what identifies it, and what becomes of a bad one."""

from pathlib import Path

import pytest

from rlhf.data.scorers import load_scorer, scorer_fingerprint
from rlhf.errors import UserError

LENGTHS = "def lengths(prompts, responses):\n    return [len(text) for text in responses]\n"


def scorer_file(folder: Path, text: str = LENGTHS) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_a_function_of_a_file_or_of_a_module_scores(tmp_path: Path) -> None:
    assert load_scorer(f"{scorer_file(tmp_path)}:lengths")(["p", "p"], ["a", "abc"]) == [1.0, 3.0]
    with pytest.raises(UserError, match="no function `lengths` there"):
        load_scorer("json:lengths")


def test_a_scorer_is_its_text_and_its_function_not_its_place(tmp_path: Path) -> None:
    print_here = scorer_fingerprint(f"{scorer_file(tmp_path)}:lengths")
    (tmp_path / "moved").mkdir()
    moved = scorer_file(tmp_path / "moved")
    assert scorer_fingerprint(f"{moved}:lengths") == print_here
    assert scorer_fingerprint(f"{moved}:other") != print_here
    moved.write_text(LENGTHS.replace("len(", "-len("))
    assert scorer_fingerprint(f"{moved}:lengths") != print_here
    assert scorer_fingerprint("package.module:function") == "package.module:function"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "names no function"),
        ("{folder}/mine.py:", "names no function"),
        ("{folder}/missing.py:lengths", "there is no such file"),
        ("no_such_module:lengths", "No module named"),
        ("{folder}/mine.py:absent", "no function `absent` there"),
    ],
)
def test_a_scorer_that_cannot_be_found_is_named(tmp_path: Path, spec: str, message: str) -> None:
    scorer_file(tmp_path)
    with pytest.raises(UserError, match=message):
        load_scorer(spec.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.0]", "1 scores for 2 responses"),
        ("return [0.0, float('nan')]", "not a finite number"),
        ("return 1 / 0", "it failed \\(ZeroDivisionError"),
        ("return ['high', 'low']", "it failed \\(ValueError"),
    ],
)
def test_a_scorer_that_misbehaves_is_a_users_error(tmp_path: Path, body: str, message: str) -> None:
    path = scorer_file(tmp_path, f"def lengths(prompts, responses):\n    {body}\n")
    with pytest.raises(UserError, match=message):
        load_scorer(f"{path}:lengths")(["p", "p"], ["a", "b"])


def test_a_caller_may_take_scores_that_are_not_finite_but_no_others(tmp_path: Path) -> None:
    path = scorer_file(tmp_path, "def lengths(prompts, responses):\n    return [float('nan'), 1.0]\n")
    score = load_scorer(f"{path}:lengths", all_finite=False)
    assert str(score(["p", "p"], ["a", "b"])) == "[nan, 1.0]"
    with pytest.raises(UserError, match="2 scores for 1 responses"):
        score(["p"], ["a"])

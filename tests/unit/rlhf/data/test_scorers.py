"""Scorers: what names one, what identifies it, and what becomes of a bad one."""

from pathlib import Path

import pytest

from rlhf.data.scorer_code import scorer_fingerprint
from rlhf.data.scorers import PAUSES_SECONDS, Scorer, load_scorer
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


def loaded(folder: Path, text: str, *, all_finite: bool = False) -> tuple[Scorer, list[float]]:
    """The scorer `f` of a file with this text, and the pauses that it is going to take."""
    pauses: list[float] = []
    path = scorer_file(folder, text)
    return load_scorer(f"{path}:f", all_finite=all_finite, sleep=pauses.append), pauses


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.0]", "1 scores for 2 responses"),
        ("return [0.0] * 3", "more than 2 scores for 2 responses"),
        ("while True: yield 1.0", "more than 2 scores for 2 responses"),
        ("return ['high', 'low']", "score 1 is str 'high' and no number"),
        ("return [0.5, '0.5']", "score 2 is str '0.5' and no number"),
        ("return '12'", "str '12' and no list of numbers"),
        ("return {0: 1.0, 1: 2.0}", "dict {0: 1.0, 1: 2.0} and no list of numbers"),
        ("return {1.0, 2.0}", "and no list of numbers"),
        ("return None", "NoneType None and no list of numbers"),
        ("return 0.5", "float 0.5 and no list of numbers"),
        ("return [[1.0], [2.0]]", "score 1 is list"),
        ("return [(1.0, 'why'), (0.0, 'why')]", "score 1 is tuple"),
        ("return [1j, 0.0]", "score 1 is complex"),
        ("return [10**400, 0.0]", "score 1 is too large"),
        ("import numpy; return numpy.zeros((2, 1))", "score 1 is list"),
        ("import torch; return [torch.zeros(2), torch.zeros(2)]", "score 1 is Tensor"),
        ("return [g() for _ in p]", "score 1 is a coroutine"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused_at_once(tmp_path: Path, body: str, message: str) -> None:
    score, pauses = loaded(tmp_path, f"async def g(): return 1.0\ndef f(p, r):\n    {body}\n")
    with pytest.raises(UserError) as caught:
        score(["p", "p"], ["a", "b"])
    assert message in caught.value.what
    assert not pauses


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("def f(p, r): return [None, 1]", "[nan, 1.0]"),
        ("def f(p, r): return [float('nan'), float('inf')]", "[nan, inf]"),
        ("def f(p, r): return (True, False)", "[1.0, 0.0]"),
        ("def f(p, r): return (len(text) for text in r)", "[1.0, 3.0]"),
        ("def f(p, r):\n    yield 1\n    yield None", "[1.0, nan]"),
        ("import numpy\ndef f(p, r): return numpy.array([1.5, 2])", "[1.5, 2.0]"),
        ("import numpy\ndef f(p, r): return [numpy.float32(1.5), numpy.bool_(True)]", "[1.5, 1.0]"),
        ("import torch\ndef f(p, r): return torch.tensor([1.5, 2], requires_grad=True)", "[1.5, 2.0]"),
        ("import torch\ndef f(p, r): return [torch.tensor(1.5), None]", "[1.5, nan]"),
        ("import decimal\ndef f(p, r): return [decimal.Decimal('1.5'), 2]", "[1.5, 2.0]"),
        ("async def f(p, r): return [1, 2]", "[1.0, 2.0]"),
        ("async def f(p, r):\n    yield 1\n    yield 2", "[1.0, 2.0]"),
        ("async def g(): return [1, 2]\ndef f(p, r): return g()", "[1.0, 2.0]"),
        (
            "import asyncio\nloops = set()\nasync def f(p, r):\n    loops.add(asyncio.get_running_loop())\n"
            "    assert len(loops) == 1\n    return await asyncio.gather(*map(g, r))\n"
            "async def g(text):\n    await asyncio.sleep(0)\n    return len(text)",
            "[1.0, 3.0]",
        ),
    ],
)
def test_whatever_numbers_a_scorer_returns_are_understood(tmp_path: Path, text: str, scores: str) -> None:
    score, _ = loaded(tmp_path, text)
    for _ in range(2):
        assert str(score(["p", "p"], ["a", "abc"])) == scores


FAILING = """
failures = [ConnectionError("gone"), SystemExit("no"), TimeoutError()][:{num}]
def f(p, r):
    if failures:
        raise failures.pop()
    return [1.0 for _ in r]
"""


@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_passing_error_is_tried_again_after_pauses_that_grow(
    tmp_path: Path, num: int, capsys: pytest.CaptureFixture[str]
) -> None:
    score, pauses = loaded(tmp_path, FAILING.format(num=num))
    assert score(["p"], ["a"]) == [1.0]
    assert pauses == list(PAUSES_SECONDS[:num]) == sorted(set(pauses))
    assert capsys.readouterr().err.count("trying again in") == num


def test_an_error_that_stays_is_a_users_error(tmp_path: Path) -> None:
    score, pauses = loaded(tmp_path, "def f(p, r): return 1 / 0")
    with pytest.raises(UserError, match=r"it failed \(ZeroDivisionError: .*\), 4 times in a row"):
        score(["p"], ["a"])
    assert pauses == list(PAUSES_SECONDS)


@pytest.mark.parametrize("value", ["None", "float('nan')", "float('inf')"])
def test_a_caller_that_needs_every_score_is_told_which_one_is_missing(tmp_path: Path, value: str) -> None:
    score, _ = loaded(tmp_path, f"def f(p, r): return [1.0, {value}]", all_finite=True)
    with pytest.raises(UserError, match=r"score 2 of 2 is .*, not a finite number"):
        score(["p", "p"], ["a", "b"])

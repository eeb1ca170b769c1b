"""What identifies a scorer, and what is wrong with one, without running it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.data.scorer_code import check_scorer, scorer_details
from rlhf.errors import UserError

BOOM = "raise SystemExit('it was run')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported, as the one that a command runs in."""
    place = tmp_path / "code"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))
    yield place
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    """Files by module: `own_b__c` is `own_b/c.py`."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/', 1)}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(BOOM + text)


TREE = {
    "score": "import own_a\ndef f(p, r):\n    from own_late import value\n    return [value for _ in r]\n",
    "own_a": "from own_b import c\nimport numpy.linalg as la\n",
    "own_late": "value = 1\n",
    "own_b__": "",
    "own_b__c": "from . import d\nfrom own_loop import x\n",
    "own_b__d": "import importlib\ndef g():\n    return importlib.import_module('own_dynamic')\n",
    "own_dynamic": "import own_loop\n",
    "own_loop": "import own_dynamic\nx = 1\n",
}


def tree(folder: Path) -> str:
    write(folder, **{name: text for name, text in TREE.items() if name != "own_b__"})
    (folder / "own_b" / "__init__.py").write_text(BOOM)
    return f"{folder / 'score.py'}:f"


@pytest.mark.parametrize(
    "changed", ["own_a", "own_late", "own_b/__init__", "own_b/c", "own_b/d", "own_dynamic"]
)
def test_a_scorer_is_also_the_modules_that_it_imports(folder: Path, changed: str) -> None:
    spec = tree(folder)
    before = scorer_details("reward", spec)
    assert scorer_details("reward", spec) == before
    path = folder / f"{changed}.py"
    path.write_text(path.read_text() + "# changed\n")
    after = scorer_details("reward", spec)
    assert after["modules of reward"] != before["modules of reward"]
    assert after["packages of reward"] == before["packages of reward"]
    assert "it was run" not in str(after)


def test_a_module_beside_the_scorer_counts_where_python_would_not_look(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(
        "import sys\nsys.path.insert(0, '.')\nimport own_near\ndef f(p, r): ...\n"
    )
    (tmp_path / "own_near.py").write_text("x = 1\n")
    before = scorer_details("gold", f"{tmp_path / 'score.py'}:f")
    (tmp_path / "own_near.py").write_text("x = 2\n")
    assert scorer_details("gold", f"{tmp_path / 'score.py'}:f") != before


def test_installed_packages_count_by_version_and_the_standard_library_not_at_all(tmp_path: Path) -> None:
    import numpy

    path = tmp_path / "score.py"
    path.write_text(
        "import re, json.decoder\nimport numpy as np\nfrom rlhf.errors import UserError\ndef f(p, r): ...\n"
    )
    assert scorer_details("gold", f"{path}:f") == {"packages of gold": f"numpy {numpy.__version__}"}
    path.write_text("import re, math\ndef f(p, r): ...\n")
    assert scorer_details("gold", f"{path}:f") == {}


def test_a_module_by_name_is_its_content(folder: Path) -> None:
    write(folder, own_scores="def f(p, r): ...\n")
    before = scorer_details("gold", "own_scores:f")
    write(folder, own_scores="def f(p, r): return []\n")
    assert scorer_details("gold", "own_scores:f") != before


@pytest.mark.parametrize(
    "text",
    [
        "def f(prompts, responses): ...",
        "async def f(prompts, responses, *, k=1): ...",
        "def f(*texts): ...",
        "def f(p, r, more=None): ...",
        "@decorated\ndef f(one): ...",
        "from own_other import f",
        "from own_other import *",
        "f = make()",
        "class f: ...",
        "if True:\n    def f(p, r): ...",
        "try:\n    from fast import f\nexcept ImportError:\n    def f(p, r): ...",
        "def __getattr__(name): ...",
        "def f(p, r):\n    try:\n        import absent\n    except ImportError:\n        pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import absent\ndef f(p, r): ...",
        "def f(p, r): ...\ndef unused():\n    import absent",
        "import os.path\nimport xml.etree.ElementTree as E\nfrom numpy.linalg import norm\ndef f(p, r): ...",
    ],
)
def test_a_scorer_that_can_be_called_passes_without_being_run(folder: Path, text: str) -> None:
    write(folder, own_other="def f(p, r): ...\n", score=text)
    check_scorer(f"{folder / 'score.py'}:f")
    check_scorer("score:f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def g(p, r): ...", "no function `f` there"),
        ("def f(p, r) return 1", "this is not Python"),
        ("def f(response): ...", "line 2: `f` is called with two lists"),
        ("def f(p, r, k): ...", "line 2: `f` is called with two lists"),
        ("def f(p, r, *, k): ...", "line 2: `f` is called with two lists"),
        ("import absent\ndef f(p, r): ...", "line 2 imports `absent`, which is not installed"),
        ("from absent.deep import x\ndef f(p, r): ...", "line 2 imports `absent.deep`"),
        ("def f(p, r): return g()\ndef g():\n    import absent", "line 4 imports `absent`"),
        (
            "def f(p, r):\n    try:\n        import absent\n    except ImportError:\n        raise OSError",
            "line 4 imports `absent`",
        ),
    ],
)
def test_a_scorer_that_cannot_be_called_is_refused_without_being_run(
    folder: Path, text: str, message: str
) -> None:
    write(folder, score=text)
    for spec in (f"{folder / 'score.py'}:f", "score:f"):
        with pytest.raises(UserError) as caught:
            check_scorer(spec)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "names no function"),
        (":f", "names no function"),
        ("missing.py:f", "there is no such file"),
        ("own_missing:f", "No module named 'own_missing'"),
        ("json.missing:f", "No module named 'json.missing'"),
        ("json:lengths", "no function `lengths` there"),
    ],
)
def test_a_scorer_that_is_not_there_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_scorer(spec)


def test_the_shipped_scorers_pass(root: Path) -> None:
    check_scorer(f"{root}/configs/tiny/gold.py:score")
    assert scorer_details("gold", f"{root}/configs/tiny/gold.py:score") == {}
    assert list(scorer_details("gold", f"{root}/configs/stories/gold.py:sentiment")) == ["packages of gold"]

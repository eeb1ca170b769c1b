"""Scores that come from outside the backbone: plain Python functions that see text.

A scorer is named `path/to/file.py:function` or `package.module:function` and is called with two lists,
prompts and responses, and returns one number for each pair, higher being better, or None where it has none.
Naming a scorer in a recipe runs its code. A scorer may ask a service: what it raises is tried again before it
ends the stage.
"""

import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf import optional
from rlhf.data.scorer_code import NAME_IT
from rlhf.data.scores import NotScoresError, Results
from rlhf.errors import UserError

Scorer = Callable[[Sequence[str], Sequence[str]], list[float]]

PAUSES_SECONDS = (1.0, 4.0, 16.0)
"""Before the second, third and last attempt at a call that raised an error."""


def load_scorer(spec: str, *, all_finite: bool = True, sleep: Callable[[float], None] = time.sleep) -> Scorer:
    """The function that `spec` names, wrapped so that its results are checked, and its errors tried again.

    A response that it has no score for gets NaN. With `all_finite` that is refused, as infinities are;
    without, whoever calls leaves those responses out.

    Raises:
        UserError: no such file, module or function; later, a result of the wrong length or not a number, or
            an error at every attempt.
    """
    function = _load(spec)
    results = Results()

    def attempt(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        with optional.as_installed():
            return results.numbers(function(list(prompts), list(responses)), len(responses))

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        try:
            scores = _with_attempts(lambda: attempt(prompts, responses), spec, sleep)
        except NotScoresError as error:
            fix = "Return one number for every response, or None where there is no score."
            raise UserError(f"it returned {error}", where=f"scorer {spec}", fix=fix) from None
        if all_finite:
            _check_finite(scores, spec)
        return scores

    return score


def _with_attempts(call: Callable[[], list[float]], spec: str, sleep: Callable[[float], None]) -> list[float]:
    """What `call` returns; an error of the user's code, or of a service that it asks, is tried again.

    Raises:
        UserError: the last attempt failed, too.
    """
    for pause in (*PAUSES_SECONDS, None):
        try:
            return call()
        except NotScoresError:
            raise
        except (Exception, SystemExit) as error:  # it is the user's code, and may raise anything
            failed = f"it failed ({type(error).__name__}: {error})"
            if pause is None:
                raise UserError(
                    f"{failed}, {len(PAUSES_SECONDS) + 1} times in a row",
                    where=f"scorer {spec}",
                    fix="Correct it: it must accept these texts, and may return None where it has no score. "
                    "PPO resumes with a corrected scorer after ACCEPT_SCORER=1 (--accept-scorer).",
                ) from error
        print(f"warning: scorer {spec}: {failed}; trying again in {pause:g} s", file=sys.stderr, flush=True)
        sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _check_finite(scores: Sequence[float], spec: str) -> None:
    for place, value in enumerate(scores, start=1):
        if not math.isfinite(value):
            raise UserError(
                f"score {place} of {len(scores)} is {value}, not a finite number",
                where=f"scorer {spec}",
                fix="Here every response needs a score: return one finite number for each.",
            )


def _load(spec: str) -> Callable[..., Any]:
    """Import the module that `spec` names, and take its function."""
    module_name, colon, function_name = spec.rpartition(":")
    if not colon or not function_name:
        raise UserError(f"`{spec}` names no function", where="scorer", fix=NAME_IT)
    path = Path(module_name)
    try:
        with optional.as_installed():
            module = (
                _of_file(path, spec) if module_name.endswith(".py") else importlib.import_module(module_name)
            )
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # likewise
        raise UserError(
            str(error), where=f"scorer {spec}", fix="Install what it needs, or correct its name."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"no function `{function_name}` there", where=f"scorer {spec}", fix=NAME_IT)
    return function  # type: ignore[no-any-return]


def _of_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise UserError("there is no such file", where=f"scorer {spec}", fix=NAME_IT)
    loader = importlib.util.spec_from_file_location(f"_scorer_{path.stem}", path)
    assert loader is not None
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module

"""Scores that come from outside the backbone: plain Python functions that see text.

A scorer is named `path/to/file.py:function` or `package.module:function` and is called with two lists,
prompts and responses, and returns one number for each pair, higher being better. Naming a scorer in a
recipe runs its code.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf import optional
from rlhf.errors import UserError
from rlhf.runs.files import sha256_file

Scorer = Callable[[Sequence[str], Sequence[str]], list[float]]


def scorer_fingerprint(spec: str) -> str:
    """What identifies a scorer: the SHA-256 of its file and its function's name, or its module's name."""
    file, _, function = spec.rpartition(":")
    return f"{sha256_file(Path(file))}:{function}" if Path(file).is_file() else spec


def load_scorer(spec: str, *, all_finite: bool = True) -> Scorer:
    """The function that `spec` names, wrapped so that its results are checked.

    With `all_finite` off, NaN and infinities pass: whoever calls leaves those responses out.

    Raises:
        UserError: no such file, module or function; later, a result of the wrong length or not a number.
    """
    module_name, colon, function_name = spec.rpartition(":")
    fix = "Name a scorer as path/to/file.py:function or package.module:function."
    if not colon or not function_name:
        raise UserError(f"`{spec}` names no function", where="scorer", fix=fix)
    path = Path(module_name)
    try:
        if module_name.endswith(".py"):
            if not path.is_file():
                raise UserError("there is no such file", where=f"scorer {spec}", fix=fix)
            loader = importlib.util.spec_from_file_location(f"_scorer_{path.stem}", path)
            assert loader is not None
            assert loader.loader is not None
            module = importlib.util.module_from_spec(loader)
            with optional.as_installed():
                loader.loader.exec_module(module)
        else:
            with optional.as_installed():
                module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:  # it is the user's code, and may raise anything
        raise UserError(
            str(error), where=f"scorer {spec}", fix="Install what it needs, or correct its name."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"no function `{function_name}` there", where=f"scorer {spec}", fix=fix)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        try:
            with optional.as_installed():
                scores = [float(value) for value in function(list(prompts), list(responses))]
        except Exception as error:  # likewise
            raise UserError(
                f"it failed ({type(error).__name__}: {error})",
                where=f"scorer {spec}",
                fix="Correct it, or unset the setting that names it; it must accept these texts.",
            ) from error
        refused = all_finite and not all(math.isfinite(value) for value in scores)
        if refused or len(scores) != len(responses):
            raise UserError(
                f"{len(scores)} scores for {len(responses)} responses, or one that is not a finite number",
                where=f"scorer {spec}",
                fix="Return one finite number for every response.",
            )
        return scores

    return score

"""A scorer before it is run: whether it can be found and called, and what identifies its code."""

import ast
import hashlib
from pathlib import Path

from rlhf.data.imports import Imported, defines, imported_by, module_file, parse
from rlhf.errors import UserError
from rlhf.runs.files import sha256_file

NAME_IT = "Name a scorer as path/to/file.py:function or package.module:function."


def scorer_fingerprint(spec: str) -> str:
    """What identifies a scorer: the SHA-256 of its file and its function's name, or its module's name.

    What it imports is in `scorer_details`.
    """
    file, _, function = spec.rpartition(":")
    return f"{sha256_file(Path(file))}:{function}" if Path(file).is_file() else spec


def scorer_details(name: str, spec: str) -> dict[str, str]:
    """What else identifies the scorer that the input `name` is: the code that it imports.

    The user's own modules count by their content, also those that are imported inside functions or by one
    another; installed packages count by their version. Files that a scorer reads are not known here.
    """
    path, imported = _imported(spec)
    lines = [f"{digest}  {module}\n" for module, digest in sorted(imported.modules.items())]
    if path is not None and not Path(spec.rpartition(":")[0]).is_file():
        lines.append(sha256_file(path))  # a module by name: `scorer_fingerprint` has the name alone
    details = {}
    if lines:
        details[f"modules of {name}"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    if imported.packages:
        listed = [f"{package} {version}" for package, version in sorted(imported.packages.items())]
        details[f"packages of {name}"] = ", ".join(listed)
    return details


def check_scorer(spec: str) -> None:
    """Look for a scorer, its function and the packages that it needs, without running anything.

    Raises:
        UserError: there is no such file, module or function, it does not take two lists, or a package that
            it imports is not installed.
    """
    where = f"scorer {spec}"
    path, imported = _imported(spec)
    if path is None:
        return
    function = spec.rpartition(":")[2]
    found = defines(parse(path), function)
    if found is None:
        raise UserError(f"no function `{function}` there", where=where, fix=NAME_IT)
    if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and not found.decorator_list:
        _check_takes_two(found, where)
    for each in imported.missing:
        name = each.name.rstrip(":")
        raise UserError(
            f"line {each.line} imports `{name}`, which is not installed",
            where=where,
            fix=f"Install it (python -m pip install {name.partition('.')[0]}), or correct the name.",
        )


def _imported(spec: str) -> tuple[Path | None, Imported]:
    """The scorer's file, if it is Python, and what it imports."""
    module, colon, function = spec.rpartition(":")
    where = f"scorer {spec}"
    if not colon or not function or not module:
        raise UserError(f"`{spec}` names no function", where="scorer", fix=NAME_IT)
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise UserError("there is no such file", where=where, fix=NAME_IT)
        return Path(module), imported_by(Path(module), module=None, function=function)
    try:
        path = module_file(module)
    except ModuleNotFoundError as error:
        fix = "Install what it needs, or correct its name."
        raise UserError(str(error), where=where, fix=fix) from None
    if path is None:
        return None, Imported()
    return path, imported_by(path, module=module, function=function)


def _check_takes_two(function: ast.FunctionDef | ast.AsyncFunctionDef, where: str) -> None:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    num_required = len(positional) - len(arguments.defaults)
    missing = [
        one.arg
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if not default
    ]
    takes_two = num_required <= 2 and (len(positional) >= 2 or arguments.vararg is not None)
    if missing or not takes_two:
        raise UserError(
            f"line {function.lineno}: `{function.name}` is called with two lists, prompts and responses",
            where=where,
            fix=f"Let it take them: def {function.name}(prompts, responses).",
        )

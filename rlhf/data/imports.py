"""What Python code imports, by its syntax tree alone: nothing is run, for that may need a GPU or a network.

The modules of the user's own are followed to the modules that they import; of packages that are installed the
version counts, and of Python's own library nothing.
"""

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from rlhf import optional
from rlhf.errors import UserError
from rlhf.runs.files import sha256_file

_REPOSITORY = Path(__file__).resolve().parents[2]
_OURS = frozenset({"rlhf", "sft", "reward", "ppo", "labeling", "plan", "benchmarks"})
"""Packages of this project: what they are is known by the revision in the manifest."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_SOFT = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


@dataclass(frozen=True)
class Import:
    """One name that code imports, in full; `required` if code that certainly runs fails without it."""

    name: str
    required: bool
    line: int


@dataclass
class Imported:
    """What a file imports, and what that imports."""

    modules: dict[str, str] = field(default_factory=dict)
    """The user's own modules → SHA-256 of the file."""
    packages: dict[str, str] = field(default_factory=dict)
    """Installed packages → version; "none" for one that is not there."""
    missing: list[Import] = field(default_factory=list)
    """Imports of the file itself that are required, and are not there."""


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file of Python.

    Raises:
        UserError: it is unreadable, or not Python.
    """
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise UserError(
            f"cannot read it ({error.strerror})", where=str(path), fix="Correct its permissions."
        ) from None
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(
            f"this is not Python {sys.version_info.major}.{sys.version_info.minor} ({what})",
            where=f"{path}{line}",
            fix="Correct it.",
        ) from None


def imported_by(path: Path, *, module: str | None, function: str) -> Imported:
    """All that `function` of the file `path` may import; `module` is the file's name, if it has one."""
    found = Imported()
    if module is not None:
        _follow(module, path.parent, found)  # with the packages that it is in, which are imported first
    package = _package_of(module, path)
    for each in _imports(parse(path), package, used=function):
        if _follow(each.name, path.parent, found) or not each.required:
            continue
        if not any(known.name == each.name for known in found.missing):
            found.missing.append(each)
    return found


def module_file(name: str, folder: Path | None = None) -> Path | None:
    """The file of a module, found without running anything; None if it has none that is Python.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    spec = _chain(name, folder)[-1]
    if spec is None:
        raise ModuleNotFoundError(f"No module named '{name}'")
    is_source = spec.origin is not None and spec.origin.endswith(".py")
    return Path(spec.origin) if is_source and spec.origin is not None else None


def defines(tree: ast.Module, name: str) -> ast.AST | None:
    """The statement that gives a module the name, at its top level or under an `if` or a `try`.

    Where that cannot be told (`import *`, a `__getattr__`), it is the module itself.
    """
    unclear: ast.AST | None = None
    for node in _top_level(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name == name:
                return node
            if node.name == "__getattr__":
                unclear = tree
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    return node
                if alias.name == "*":
                    unclear = tree
        elif any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node)):
            return node
    return unclear


_BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While, ast.ExceptHandler)


def _top_level(node: ast.AST) -> Iterator[ast.stmt]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _BLOCKS):
            yield from _top_level(child)
        elif isinstance(child, ast.stmt):
            yield child


# ---- which names --------------------------------------------------------------------------------------


def _imports(tree: ast.Module, package: str | None, *, used: str | None) -> Iterator[Import]:
    """Every import of a module; those in functions that `used` does not reach are not required."""
    reached = _reached(tree, used) if used is not None else set()
    for node in tree.body:
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        required = not is_definition or node.name in reached  # type: ignore[attr-defined]
        yield from _inside(node, package, required=required)


def _inside(node: ast.AST, package: str | None, *, required: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
        for name in _names(node, package):
            yield Import(name, required, node.lineno)
    if isinstance(node, ast.If):
        if not any(
            isinstance(part, ast.Name | ast.Attribute) and _ends(part) for part in ast.walk(node.test)
        ):
            yield from _of_all([node.test, *node.body], package, required=False)
        yield from _of_all(node.orelse, package, required=False)
    elif isinstance(node, ast.Try):
        soft = any(_passes_over_missing(handler) for handler in node.handlers)
        yield from _of_all(node.body, package, required=required and not soft)
        yield from _of_all([*node.handlers, *node.orelse, *node.finalbody], package, required=False)
    else:
        yield from _of_all(list(ast.iter_child_nodes(node)), package, required=required)


def _of_all(
    nodes: "list[ast.AST] | list[ast.stmt]", package: str | None, *, required: bool
) -> Iterator[Import]:
    for node in nodes:
        yield from _inside(node, package, required=required)


def _ends(node: ast.Name | ast.Attribute) -> bool:
    """Whether a condition is `TYPE_CHECKING`, under which nothing runs."""
    return (node.id if isinstance(node, ast.Name) else node.attr) == "TYPE_CHECKING"


def _passes_over_missing(handler: ast.ExceptHandler) -> bool:
    """Whether a handler goes on without a package that is missing."""
    kinds = [] if handler.type is None else [part for part in ast.walk(handler.type)]
    names = {part.id for part in kinds if isinstance(part, ast.Name)}
    raises = any(isinstance(part, ast.Raise) for part in ast.walk(handler))
    return (handler.type is None or bool(names & _SOFT)) and not raises


def _names(node: ast.Import | ast.ImportFrom | ast.Call, package: str | None) -> list[str]:
    """The modules that one statement or call may import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if called not in ("import_module", "__import__") or not isinstance(first, ast.Constant):
            return []
        return [first.value] if isinstance(first.value, str) and not first.value.startswith(".") else []
    base = node.module or ""
    if node.level:
        parts = (package or "").split(".")
        kept = parts[: len(parts) - node.level + 1]
        base = ".".join([*kept, *([base] if base else [])])
    # `from a import b`: b may be a module of its own.
    return [base, *(f"{base}.{alias.name}:" for alias in node.names if alias.name != "*")] if base else []


def _reached(tree: ast.Module, function: str) -> set[str]:
    """Definitions at the top level that `function`, or what runs on import, refers to, directly or not."""
    definitions: dict[str, ast.AST] = {}
    waiting = [function]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            definitions[node.name] = node
        else:
            waiting += [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found or name not in definitions:
            continue
        found.add(name)
        waiting += [part.id for part in ast.walk(definitions[name]) if isinstance(part, ast.Name)]
    return found


# ---- which files --------------------------------------------------------------------------------------


def _follow(name: str, folder: Path, found: Imported) -> bool:
    """Note a module and, if it is the user's own, what it imports; whether it is there."""
    may_be_an_attribute = name.endswith(":")
    name = name.removesuffix(":")
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    chain = _chain(name, folder)
    if chain[0] is None:
        found.packages[top] = "none"
        return False
    if _is_installed(chain[0]):
        found.packages[top] = _version(top)
        return True
    if _is_ours(top, chain[0]):
        return True
    parts = name.split(".")
    for number, spec in enumerate(chain, start=1):
        full = ".".join(parts[:number])
        if spec is None:
            return may_be_an_attribute
        if full in found.modules or not spec.origin or not Path(spec.origin).is_file():
            continue
        path = Path(spec.origin)
        found.modules[full] = sha256_file(path)
        if path.suffix == ".py":
            package = full if spec.submodule_search_locations is not None else full.rpartition(".")[0]
            for each in _imports(parse(path), package or None, used=None):
                _follow(each.name, folder, found)
    return True


def _chain(name: str, folder: Path | None) -> list[ModuleSpec | None]:
    """How Python finds a module: its packages, from the outermost, and itself; None: it is not there."""
    first, *others = name.split(".")
    spec = _top_spec(first)
    if spec is None and folder is not None:
        # Code that puts its own folder into `sys.path` is not run here.
        spec = PathFinder.find_spec(first, [str(folder)])
    chain: list[ModuleSpec | None] = [spec]
    full = first
    for part in others:
        full = f"{full}.{part}"
        around = chain[-1]
        locations = around.submodule_search_locations if around is not None else None
        chain.append(PathFinder.find_spec(full, list(locations)) if locations is not None else None)
    return chain


def _top_spec(name: str) -> ModuleSpec | None:
    try:
        with optional.as_installed():
            return importlib.util.find_spec(name)
    except (ValueError, ImportError):  # a module that is loaded and says nothing of where from
        return None


def _is_installed(spec: ModuleSpec) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return bool(places) and all(_INSTALLED & {*Path(place).parts} for place in places if place)


def _is_ours(top: str, spec: ModuleSpec) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return top in _OURS and all(_REPOSITORY in Path(place).resolve().parents for place in places if place)


def _version(top: str) -> str:
    for name in _distributions().get(top, [top]):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


@cache
def _distributions() -> dict[str, list[str]]:
    return {name: sorted(set(found)) for name, found in importlib.metadata.packages_distributions().items()}


def _package_of(module: str | None, path: Path) -> str | None:
    """The package in which a module's relative imports are found."""
    if module is None:
        return None
    return module if path.name == "__init__.py" else module.rpartition(".")[0] or None

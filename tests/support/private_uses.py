"""Finds what the project uses of libraries' insides: `python -m tests.support.private_uses [ROOT]` lists it.

Inside is what begins with an underscore: attributes and methods, their names in strings, names and modules
that are imported, keyword arguments, and what a subclass here defines though its library base has it.

A name is the project's own if a module or class of it defines the name, unless it is reached through a
library's module (`torch._C`) or through `self` in a class whose library base has it. So a use of a library's
name that the project happens to define elsewhere, on an object that the source does not name, is missed.
"""

import ast
import functools
import importlib
import inspect
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("rlhf", "sft", "reward", "ppo", "labeling", "plan", "benchmarks")
DOCUMENTED = {
    "_exit": "os",
    "_asdict": "typing.NamedTuple",
    "_fields": "typing.NamedTuple",
    "_make": "typing.NamedTuple",
    "_replace": "typing.NamedTuple",
    "_mapping": "sqlalchemy.Row",
}
"""Public in spite of their underscore: the manual of Python or of the library says what they do."""


class Use(NamedTuple):
    """One name of a library's inside in one file."""

    file: str
    name: str
    kind: str
    """attribute, literal, override, import or keyword."""
    library: str
    """Where it seems to come from; empty if the source does not say."""


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.endswith("__")


@dataclass
class Module:
    """A file's syntax tree, and what its import statements call things."""

    file: str
    tree: ast.Module
    imported: dict[str, str] = field(default_factory=dict)
    """Local name → dotted path."""
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)

    @classmethod
    def read(cls, file: str, source: str) -> "Module":
        module = cls(file, ast.parse(source))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root = alias.name.partition(".")[0]
                    module.imported[alias.asname or root] = alias.name if alias.asname else root
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    module.imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.ClassDef):
                module.classes[node.name] = node
        return module

    @property
    def name(self) -> str:
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def path_of(self, node: ast.AST) -> str | None:
        """The dotted path that an expression names, if it begins with something imported."""
        if isinstance(node, ast.Subscript):
            return self.path_of(node.value)
        if isinstance(node, ast.Attribute):
            before = self.path_of(node.value)
            return before and f"{before}.{node.attr}"
        if isinstance(node, ast.Name):
            own = f"{self.name}.{node.id}" if node.id in self.classes else None
            return self.imported.get(node.id, own)
        return None


class Project:
    """All modules, and which private names they define."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.modules = [Module.read(file, source) for file, source in sources.items()]
        self.packages = {module.name.partition(".")[0] for module in self.modules}
        self.classes = {
            f"{m.name}.{name}": (m, node) for m in self.modules for name, node in m.classes.items()
        }
        self.own = {name for module in self.modules for name in _defined(module.tree)}
        for module, node in self.classes.values():
            self.own |= set(_on_self(node)) - self.inherited(module, node)

    @classmethod
    def read(cls, root: Path) -> "Project":
        files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
        return cls({file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files})

    def is_own(self, path: str) -> bool:
        return path.partition(".")[0] in self.packages

    def inherited(self, module: Module, node: ast.ClassDef) -> set[str]:
        """The private names that the library classes under `node` have."""
        names: set[str] = set()
        for base in node.bases:
            path = module.path_of(base)
            if path in self.classes:
                names |= self.inherited(*self.classes[path])
            elif path is not None and not self.is_own(path):
                names |= library_names(path)
        return names

    def uses(self) -> list[Use]:
        """Every use, once for each file and name."""
        found: dict[tuple[str, str], Use] = {}
        for module in self.modules:
            for use in _Finder(self, module).find():
                if use.name.rpartition(".")[2] not in DOCUMENTED:
                    found.setdefault((use.file, use.name), use)
        return sorted(found.values())


def _defined(tree: ast.AST) -> Iterator[str]:
    """The private names that modules, classes and functions bind by themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def _on_self(node: ast.AST) -> Iterator[str]:
    """The private attributes that a class sets on its instances."""
    for inner in ast.walk(node):
        is_set = isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
        if isinstance(inner, ast.Attribute) and is_set and _is_self(inner.value) and is_private(inner.attr):
            yield inner.attr


def _is_self(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@functools.cache
def library_names(path: str) -> set[str]:
    """The private names of a library's class and of its bases: methods, and what they set on `self`."""
    found: Any = None
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for name in parts[length:]:
            found = getattr(found, name, None)
        break
    names: set[str] = set()
    for cls in inspect.getmro(found) if inspect.isclass(found) else ():
        names |= {name for name in vars(cls) if is_private(name)}
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):
            continue  # written in C
        names |= set(_on_self(ast.parse(source)))
    return names


class _Finder(ast.NodeVisitor):
    """The uses in one module."""

    def __init__(self, project: Project, module: Module) -> None:
        self.project = project
        self.module = module
        self.inherited: list[set[str]] = [set()]
        self.found: list[Use] = []

    def find(self) -> list[Use]:
        self.visit(self.module.tree)
        return self.found

    def add(self, name: str, kind: str, library: str = "") -> None:
        self.found.append(Use(self.module.file, name, kind, library))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        inherited = self.project.inherited(self.module, node)
        for statement in node.body:
            for name in _bound_by(statement):
                if name in inherited:
                    self.add(name, "override", ast.unparse(node.bases[0]))
        self.inherited.append(inherited)
        self.generic_visit(node)
        self.inherited.pop()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.check_import(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level:
            for alias in node.names:
                self.check_import(f"{node.module}.{alias.name}")

    def check_import(self, path: str) -> None:
        if any(is_private(part) for part in path.split(".")) and not self.project.is_own(path):
            self.add(path, "import", path.partition(".")[0])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if is_private(node.attr):
            self.check_attribute(node.value, node.attr)
        self.generic_visit(node)

    def check_attribute(self, owner: ast.AST, name: str) -> None:
        path = self.module.path_of(owner)
        if path is not None and not self.project.is_own(path):
            self.add(name, "attribute", path)
        elif _is_self(owner):
            if name in self.inherited[-1]:
                self.add(name, "attribute", "self")
        elif name not in self.project.own:
            self.add(name, "attribute")

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg and is_private(keyword.arg) and keyword.arg not in self.project.own:
                self.add(keyword.arg, "keyword")
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        for part in node.values:  # "_seconds" in f"{name}_seconds" is no name
            if isinstance(part, ast.FormattedValue):
                self.visit(part)

    def visit_Constant(self, node: ast.Constant) -> None:
        # setattr(x, "_name", y), vars(x)["_name"], mock.patch.object(x, "_name"), for name in ("_name", ...)
        text = node.value
        is_name = isinstance(text, str) and text.isidentifier() and is_private(text)
        if is_name and text not in self.project.own:
            self.add(str(text), "literal")


def _bound_by(statement: ast.stmt) -> Iterator[str]:
    """The private names that a statement of a class body binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        names = [statement.name]
    elif isinstance(statement, ast.AnnAssign):
        names = [statement.target.id] if isinstance(statement.target, ast.Name) else []
    elif isinstance(statement, ast.Assign):
        names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    else:
        names = []
    yield from (name for name in names if is_private(name))


def main(root: Path) -> None:
    """Print how many uses there are, of which kinds, and each of them."""
    uses = Project.read(root).uses()
    print(len(uses), dict(Counter(use.kind for use in uses)))
    for use in uses:
        print(f"{use.file}: {use.name} ({use.kind}{', ' if use.library else ''}{use.library})")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

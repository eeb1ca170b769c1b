"""Every import of the project, read from the source itself: the module's own, in functions, for typing."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rlhf", "sft", "reward", "ppo", "labeling", "plan", "benchmarks")

When = Literal["load", "call", "typing"]


@dataclass(frozen=True)
class Import:
    """One import statement's module, and when it happens."""

    importer: str
    line: int
    target: str
    when: When

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.target}"


def is_within(module: str, groups: tuple[str, ...]) -> bool:
    return any(module == group or module.startswith(f"{group}.") for group in groups)


def imports_of(importer: str, source: str, *, is_package: bool = False) -> list[Import]:
    """Every module that the source names in an import, or as `torch.distributed`.

    `from a import b` counts as `a.b`, whether `b` is a module or not: it lies within `a` either way.
    """
    found: list[Import] = []

    def visit(node: ast.AST, when: When) -> None:
        line = getattr(node, "lineno", 0)
        for target in _targets(node, importer, is_package=is_package):
            found.append(Import(importer, line, target, when))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            when = "call"
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                visit(statement, "typing")
            for statement in node.orelse:
                visit(statement, when)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, when)

    visit(ast.parse(source), "load")
    return found


def _targets(node: ast.AST, importer: str, *, is_package: bool) -> list[str]:
    """The modules that one node names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = importer.split(".")
        # A package counts dots from itself, a module from the package around it.
        parents = parts[: len(parts) + is_package - node.level] if node.level else []
        base = [*parents, node.module] if node.module else parents
        return [".".join([*base, alias.name]) for alias in node.names]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        name = f"{node.value.id}.{node.attr}"
        return [name] if name == "torch.distributed" else []
    return []


def read_modules() -> dict[str, list[Import]]:
    """The imports of every module of the project, by the module's name."""
    modules: dict[str, list[Import]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules[name] = imports_of(name, path.read_text(encoding="utf-8"), is_package=is_package)
    return modules


def own_module(target: str, names: set[str]) -> str | None:
    """The module of the project that an import's target lies in, if there is one."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in names:
            return name
    return None


def module_graph(modules: dict[str, list[Import]]) -> dict[str, set[str]]:
    """Module → the modules of the project that it imports, wherever in its source."""
    names = set(modules)
    graph: dict[str, set[str]] = {}
    for name, found in modules.items():
        targets = {own_module(each.target, names) for each in found}
        graph[name] = {target for target in targets if target is not None and target != name}
    return graph

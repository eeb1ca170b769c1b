"""The rooms of `labeling`, as its docstring lists them: no import leads up, and none leads round."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import labeling

ROOT = Path(labeling.__file__).parent
IN_CONFIG = "constitution.config"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}


def imported(module: str) -> set[str]:
    """Modules of `labeling` that a module imports, inside functions and for typing, too."""
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "labeling":
            base = (node.module or "").removeprefix("labeling").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in MODULES else base)
    return found


def floors() -> dict[str, int]:
    """Room → its floor, from the package's docstring."""
    lines = re.findall(r"^ {4}([a-z, ]+?)  +\S", labeling.__doc__ or "", flags=re.M)
    return {room: floor for floor, line in enumerate(lines) for room in line.split(", ")}


FLOORS = floors()


def floor_of(module: str) -> int:
    room = "config" if module == IN_CONFIG else module.partition(".")[0]
    return len(FLOORS) if room in ("__main__", "") else FLOORS[room]


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    rooms = {module.partition(".")[0] for module in MODULES}
    assert rooms - {"", "__main__"} == set(FLOORS)


def test_no_import_leads_up() -> None:
    up = [
        f"{module} imports {target}"
        for module in MODULES
        for target in imported(module)
        if floor_of(target) > floor_of(module)
    ]
    assert up == []


def test_no_import_leads_round() -> None:
    TopologicalSorter({module: imported(module) for module in MODULES}).prepare()  # raises CycleError


def test_imports_are_seen() -> None:
    assert "store.project" in imported("sessions.session")
    assert "terminal.app" in imported("commands.work"), "inside a function"
    assert "sessions.labeling_session" in imported("commands.work"), "for typing"

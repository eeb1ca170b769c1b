"""`python -m tests.architecture`: draw the rooms of docs/architecture.md from the imports as they are.

The floors are listed here, the lowest first. A room imports only rooms on lower floors, and a test holds the
source to it; the picture shows each arrow that does not follow from two others.
"""

import sys
from pathlib import Path

import networkx

from tests.support.imports import ROOT, is_within, module_graph, read_modules

FLOORS = (
    ("rlhf.errors", "rlhf.environment", "rlhf.preemption"),
    ("rlhf.settings", "rlhf.hub", "rlhf.optional", "rlhf.statistics"),
    ("rlhf.parallel",),
    ("rlhf.runs",),
    ("rlhf.data",),
    ("rlhf.model",),
    ("rlhf.sampling", "rlhf.training"),
    ("rlhf.commands",),
    ("rlhf.launch", "sft", "reward", "labeling"),
    ("ppo",),
    ("plan",),
    ("benchmarks",),
)
ROOMS = tuple(room for floor in FLOORS for room in floor)
PAGE = ROOT / "docs" / "architecture.md"
_BEGIN = "```mermaid\n"
_END = "```\n"


def floor_of(room: str) -> int:
    """The number of the floor that a room is on, the lowest being 0."""
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def room_of(module: str) -> str | None:
    """The room of a module; None for a package that only holds rooms."""
    return next((room for room in ROOMS if is_within(module, (room,))), None)


def room_graph() -> dict[str, set[str]]:
    """Room → the other rooms that its modules import."""
    graph: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, targets in module_graph(read_modules()).items():
        room = room_of(module)
        if room is None:
            continue
        for target in targets:
            other = room_of(target)
            if other is not None and other != room:
                graph[room].add(other)
    return graph


def drawing() -> str:
    """The rooms by floor, with arrows to what they import, as a Mermaid flowchart."""
    reduced = networkx.transitive_reduction(networkx.DiGraph(room_graph()))
    lines = ["flowchart TD"]
    for number, floor in reversed(list(enumerate(FLOORS))):
        lines.append(f"  subgraph floor{number}[ ]")
        lines.extend(f'    {_key(room)}["{room}"]' for room in floor)
        lines.append("  end")
    for room in sorted(ROOMS, key=floor_of, reverse=True):
        targets = sorted(reduced.successors(room), key=ROOMS.index)
        lines.extend(f"  {_key(room)} --> {_key(target)}" for target in targets)
    return "\n".join(lines) + "\n"


def _key(room: str) -> str:
    return room.replace(".", "_")


def with_drawing(page: str) -> str:
    """The page with the picture as the imports make it now."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return before + begin + drawing() + end + after


def main(page: Path = PAGE) -> int:
    page.write_text(with_drawing(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

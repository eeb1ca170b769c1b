"""Labelers killed with `kill -9` at random moments: whether every label that was acknowledged is there, once.

python -m benchmarks.labeling.kills [--database URL] [--kills 50] [--labelers 4] [--seed 0]
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.labeling.workers import acknowledged, start_labeler
from labeling.store.items import Item
from labeling.store.labels import read_labels
from labeling.store.project import NewItem, Project
from labeling.store.rules import LabelingRules
from labeling.store.tables import events
from rlhf.commands.process import run_command

OVERLAP = 2
LEASE_SECONDS = 5.0
LONGEST_LIFE_SECONDS = 0.3
"""A labeler is killed at a random moment so soon after its first label."""
MIN_LABELS_OPEN = 300
"""Where fewer are open items are added: labelers never run out of work."""
NEW_ITEMS = 100


def main(argv: Sequence[str]) -> int:
    """Print what came of it; the exit status is 1 if the store is not as it must be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labeling.kills", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--database", metavar="URL", help="an empty PostgreSQL database [SQLite]")
    parser.add_argument("--kills", type=int, default=50, help="of labelers' processes [%(default)s]")
    parser.add_argument("--labelers", type=int, default=4, help="processes at once [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [%(default)s]")
    options = parser.parse_args(argv)
    rules = LabelingRules(overlap=OVERLAP, gold_share=0.0, lease_seconds=LEASE_SECONDS, presence_seconds=1.0)
    with tempfile.TemporaryDirectory() as folder:
        location = options.database or str(Path(folder) / "project")
        with Project.create(location, rules) as project:
            _kill(project, location, options, Path(folder))
            num_left = _finish(location, options, Path(folder))
            num_items = project.num_items()
            num_expired = _num_events(project, "expired")
            wrong = _faults(project, Path(folder))
    print(f"{options.kills} labelers killed while they worked")
    print(f"{num_items:,} items with {OVERLAP} labels each; {num_left:,} labels came after the last kill")
    print(f"{num_expired:,} abandoned items came back after the lease")
    print("the store is right" if not wrong else f"the store is WRONG: {', '.join(wrong)}")
    return 1 if wrong else 0


def _kill(project: Project, location: str, options: argparse.Namespace, folder: Path) -> None:
    """Kill one labeler after the other while they work, each time starting another."""
    rng = random.Random(options.seed)
    _add_work(project)
    running = [_started(location, f"labeler {n}", folder, 0) for n in range(options.labelers)]
    for number in range(1, options.kills + 1):
        name, worker, log = running.pop(rng.randrange(len(running)))
        while worker.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.01)  # it is still starting
            _add_work(project)
        time.sleep(rng.uniform(0.0, LONGEST_LIFE_SECONDS))
        assert worker.poll() is None, "a labeler ended before it was killed"
        worker.kill()
        worker.communicate()
        running.append(_started(location, name, folder, number))
    for _, worker, _ in running:
        worker.kill()
        worker.communicate()


def _add_work(project: Project) -> None:
    num_items = project.num_items()
    while OVERLAP * num_items - _num_events(project, "submitted") < MIN_LABELS_OPEN:
        numbers = range(num_items, num_items + NEW_ITEMS)
        project.add(NewItem(Item(prompt=f"question {n}", completions=("a", "b", "c"))) for n in numbers)
        num_items += NEW_ITEMS


def _started(
    location: str, name: str, folder: Path, number: int
) -> tuple[str, "subprocess.Popen[str]", Path]:
    log = folder / f"{name} {number}.log"
    return name, start_labeler(location, name, log), log


def _finish(location: str, options: argparse.Namespace, folder: Path) -> int:
    """Let the same labelers work on until nothing is left; how many labels they still gave."""
    before = len(acknowledged(folder))
    time.sleep(LEASE_SECONDS)
    names = [f"labeler {n}" for n in range(options.labelers)]
    last = [_started(location, name, folder, options.kills + 1) for name in names]
    for _, worker, _ in last:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors
    return len(acknowledged(folder)) - before


def _faults(project: Project, folder: Path) -> list[str]:
    """What is not as it must be."""
    query = select(events.c.item_id, events.c.submission).where(events.c.kind == "submitted")
    with project.database.read() as connection:
        stored = Counter((item_id, name) for item_id, name in connection.execute(query))
    told = Counter((item_id, name) for item_id, name, _ in acknowledged(folder))
    labels = [label for label in read_labels(project) if not label.late]
    on_time = Counter(label.item_id for label in labels)
    faults = {
        "labels that were acknowledged are missing": bool(told - stored),
        "a submission is there twice": max(stored.values()) > 1,
        "a labeler has an item twice": len({(x.item_id, x.labeler) for x in labels}) < len(labels),
        "an item has too few labels or too many": set(on_time.values()) != {OVERLAP}
        or len(on_time) != project.num_items(),
    }
    return [text for text, found in faults.items() if found]


def _num_events(project: Project, kind: str) -> int:
    query = select(func.count()).select_from(events).where(events.c.kind == kind)
    with project.database.read() as connection:
        return int(connection.execute(query).scalar_one())


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

"""Labelers at once: throughput and the time of a submission, and whether the store is right afterwards.

python -m benchmarks.labeling [--database URL] [--labelers 16] [--items 500] [--overlap 3]
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.labeling.workers import acknowledged, start_labeler
from benchmarks.statistics import quantile
from labeling.store.items import Item
from labeling.store.labels import read_labels
from labeling.store.project import NewItem, Project
from labeling.store.rules import LabelingRules
from rlhf.commands.process import run_command


def main(argv: Sequence[str]) -> int:
    """Print what was measured; the exit status is 1 if the store is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labeling", description=__doc__.split("\n")[0])
    parser.add_argument("--database", metavar="URL", help="an empty PostgreSQL database [SQLite]")
    parser.add_argument("--labelers", type=int, default=16, help="processes at once [%(default)s]")
    parser.add_argument("--items", type=int, default=500, help="items to rank [%(default)s]")
    parser.add_argument("--overlap", type=int, default=3, help="labels of each [%(default)s]")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        location = arguments.database or str(Path(folder) / "project")
        with Project.create(location, LabelingRules(overlap=arguments.overlap, gold_share=0.0)) as project:
            answers = tuple(f"answer {k}" for k in range(4))
            items = [Item(prompt=f"question {n}", completions=answers) for n in range(arguments.items)]
            project.add(NewItem(item) for item in items)
            seconds, milliseconds, failures = _rank(location, arguments.labelers, Path(folder))
            counts = Counter(label.item_id for label in read_labels(project))
    expected = arguments.items * arguments.overlap
    right = not failures and len(milliseconds) == expected == counts.total()
    right = right and set(counts.values()) == {arguments.overlap}
    print(f"{arguments.labelers} labelers, {arguments.items} items, overlap {arguments.overlap}")
    print(f"labels: {counts.total():,} of {expected:,}, {len(milliseconds) / seconds:.0f} a second")
    print(f"submit: median {quantile(milliseconds, 0.5):.1f} ms, p99 {quantile(milliseconds, 0.99):.1f} ms")
    wrong = failures or dict(Counter(counts.values()))
    print("the store is right" if right else f"the store is WRONG: {wrong}")
    return 0 if right else 1


def _rank(location: str, num_labelers: int, folder: Path) -> tuple[float, list[float], list[str]]:
    """Seconds from the first start to the last end, milliseconds of each submission, error messages."""
    started = time.perf_counter()
    workers = [start_labeler(location, f"labeler {n}", folder / f"{n}.log") for n in range(num_labelers)]
    errors = [worker.communicate()[1] for worker in workers]
    seconds = time.perf_counter() - started
    return seconds, [taken for _, _, taken in acknowledged(folder)], [error for error in errors if error]


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

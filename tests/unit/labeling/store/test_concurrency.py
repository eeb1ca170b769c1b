"""Several labelers' processes at once, and killed ones: real processes on real databases."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from labeling.store.items import Item
from labeling.store.labels import Label, read_labels
from labeling.store.ledger import replay
from labeling.store.project import NewItem, Project
from labeling.store.rules import LabelingRules
from labeling.store.tables import events, queue
from tests.unit.labeling.working import state

pytestmark = pytest.mark.slow

NUM_LABELERS, NUM_ITEMS, OVERLAP = 6, 40, 3
PRESENCE = ("seen_at", "lease_until")
"""Columns that a sign of life sets, which is no event."""


def start(root: Path, location: str, labeler: str, acknowledged: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.labeling.labeler", location, labeler, str(acknowledged)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(worker: "subprocess.Popen[str]") -> tuple[int, str]:
    _, errors = worker.communicate(timeout=240)
    return worker.returncode, errors


def acknowledged_in(folder: Path) -> list[tuple[int, str]]:
    lines = [line.split() for path in folder.glob("*.log") for line in path.read_text().splitlines()]
    return [(int(item), name) for item, name, _ in lines]


def submissions(project: Project) -> Counter[tuple[int, str]]:
    query = select(events.c.item_id, events.c.submission).where(events.c.kind == "submitted")
    with project.database.read() as connection:
        return Counter((item, name) for item, name in connection.execute(query))


def check_whole(project: Project, folder: Path) -> list[Label]:
    """What was acknowledged is there, once; no labeler has an item twice; the tables follow the events."""
    stored = submissions(project)
    assert set(stored.values()) <= {1}
    assert set(acknowledged_in(folder)) <= set(stored)
    labels = read_labels(project)
    given = Counter((label.item_id, label.labeler) for label in labels)
    assert set(given.values()) <= {1}
    before = state(project, without=PRESENCE)
    replay(project.database)
    assert state(project, without=PRESENCE) == before
    return labels


def test_labelers_at_once_give_every_item_its_labels_and_none_too_many(
    make: Any, location: str, tmp_path: Path, root: Path
) -> None:
    project = make(num_items=NUM_ITEMS, overlap=OVERLAP)
    workers = [start(root, location, f"labeler {n}", tmp_path / f"{n}.log") for n in range(NUM_LABELERS)]
    assert [finished(worker) for worker in workers] == [(0, "")] * NUM_LABELERS
    labels = check_whole(project, tmp_path)
    assert len(acknowledged_in(tmp_path)) == len(labels) == NUM_ITEMS * OVERLAP
    assert set(Counter(label.item_id for label in labels).values()) == {OVERLAP}
    assert not any(label.late for label in labels)


def test_terminals_of_one_labeler_share_the_work_without_doing_any_twice(
    make: Any, location: str, tmp_path: Path, root: Path
) -> None:
    project = make(num_items=NUM_ITEMS, overlap=1)
    workers = [start(root, location, "ann", tmp_path / f"{n}.log") for n in range(3)]
    assert [finished(worker) for worker in workers] == [(0, "")] * 3
    check_whole(project, tmp_path)
    assert len(acknowledged_in(tmp_path)) == len(submissions(project)) == NUM_ITEMS


def test_killed_labelers_lose_nothing_that_was_acknowledged(
    location: str, tmp_path: Path, root: Path
) -> None:
    rules = LabelingRules(overlap=2, lease_seconds=2.0, presence_seconds=0.2, gold_share=0.0)
    project = Project.create(location, rules)  # real time: leases of the killed must run out
    project.add(NewItem(Item(prompt=f"q{n}", completions=("a", "b", "c"))) for n in range(NUM_ITEMS))
    rng, num_killed = random.Random(5), 0
    for number in range(8):
        worker = start(root, location, f"labeler {number % 3}", tmp_path / f"{number}.log")
        before = len(acknowledged_in(tmp_path))
        deadline = time.monotonic() + 60
        while worker.poll() is None and len(acknowledged_in(tmp_path)) == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.03))  # some way into the next item
        if worker.poll() is None:
            num_killed += 1
        worker.kill()
        worker.communicate()
    assert num_killed >= 4
    time.sleep(2.1)
    for number in range(3):
        last = start(root, location, f"labeler {number}", tmp_path / f"last {number}.log")
        assert finished(last) == (0, "")
    labels = check_whole(project, tmp_path)
    on_time = Counter(label.item_id for label in labels if not label.late)
    assert len(on_time) == NUM_ITEMS
    assert set(on_time.values()) == {2}
    with project.database.read() as connection:
        assert set(connection.execute(select(queue.c.num_held)).scalars()) == {2}
    project.close()

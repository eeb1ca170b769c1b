"""A labeler as a process of its own: ranks all it is given, and writes down what was acknowledged.

    python -m benchmarks.labeling.labeler PROJECT LABELER ACKNOWLEDGED

A line of ACKNOWLEDGED, written after `submit` has returned and before anything else, is an item's number, the
submission's name and the milliseconds that `submit` took.
"""

import os
import sys
import time

from labeling.sessions.session import Session, new_submission
from labeling.store.assignment import NoTask
from labeling.store.judgements import Judgement
from labeling.store.project import Project


def main(location: str, labeler: str, acknowledged: str) -> None:
    log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Project.open(location) as project, Session(project, labeler) as session:
        while not isinstance(task := session.next(), NoTask):
            judgement = Judgement(tuple(range(1, len(task.completions) + 1)))
            session.save(task, judgement)
            name, started = new_submission(), time.perf_counter()
            session.submit(task, judgement, submission=name)
            milliseconds = (time.perf_counter() - started) * 1000
            os.write(log, f"{task.item_id} {name} {milliseconds:.2f}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])

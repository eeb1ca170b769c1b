"""What tests of sessions do and look at again and again."""

from typing import Any

from sqlalchemy import select

from labeling.sessions.session import Session, new_submission
from labeling.store.assignment import NoTask
from labeling.store.judgements import Judgement, Task
from labeling.store.project import Project
from labeling.store.tables import events, queue, work

RANKS = Judgement((1, 2, "F"))


def taken(session: Session) -> Task:
    task = session.next()
    assert isinstance(task, Task)
    return task


def reason(session: Session) -> str:
    found = session.next()
    assert isinstance(found, NoTask)
    return found.reason


def handed_in(session: Session, judgement: Judgement = RANKS) -> Task:
    task = taken(session)
    session.submit(task, judgement, submission=new_submission())
    return task


def kinds(project: Project, *which: str) -> list[str]:
    with project.database.read() as connection:
        found = connection.execute(select(events.c.kind).order_by(events.c.id)).scalars().all()
    return [kind for kind in found if not which or kind in which]


def state(project: Project, *, without: tuple[str, ...] = ()) -> list[list[dict[str, Any]]]:
    """The whole of `work` and `queue`, but for some columns."""
    with project.database.read() as connection:
        return [
            [
                {name: value for name, value in row.items() if name not in without}
                for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()
            ]
            for table in (work, queue)
        ]


def held(project: Project) -> list[int]:
    with project.database.read() as connection:
        return list(connection.execute(select(queue.c.num_held).order_by(queue.c.item_id)).scalars())

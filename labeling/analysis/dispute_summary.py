"""What labelers said of an item, as whoever decides on it sees it: every label, and nobody's name."""

from collections.abc import Sequence
from dataclasses import dataclass

from labeling.sanitize import sanitize_line
from labeling.store.judgements import Judgement, Task
from rlhf.data.records import Rank

TOGETHER = "all"


@dataclass(frozen=True)
class DisputedTask(Task):
    """A disputed item as its adjudicator sees it."""

    labels: tuple[Judgement, ...]
    """In the order shown: A's, B's and so on, who are other people in another item."""
    consensus: tuple[Rank, ...]
    in_circle: bool
    """Whether completions beat each other in a circle, which the consensus ties."""
    agreement: float


def letter(number: int) -> str:
    """What the label of this number, from 0, is called: A … Z, then A2 and so on."""
    turn, place = divmod(number, 26)
    return chr(ord("A") + place) + (str(turn + 1) if turn else "")


def dispute_summary(task: Task) -> tuple[str, ...]:
    """All that was said of a disputed item, as one text; nothing of another."""
    if not isinstance(task, DisputedTask):
        return ()
    lines = [f"{letter(number):4} {_said(label)}" for number, label in enumerate(task.labels)]
    circle = "  (in a circle: each beats the next)" if task.in_circle else ""
    lines += [f"{TOGETHER:4} {_ranks(task.consensus)}{circle}", f"agreement {task.agreement:.2f}"]
    return ("\n".join(lines),)


def votes(task: Task, number: int) -> str:
    """What was said of one completion: `A:1 B:2 C:F`."""
    if not isinstance(task, DisputedTask):
        return ""
    ranks = [label.ranks[number] for label in task.labels]
    return " ".join(f"{letter(place)}:{rank}" for place, rank in enumerate(ranks))


def _said(label: Judgement) -> str:
    scores = f"   quality {_ranks(label.scores)}" if label.scores else ""
    note = f"   {sanitize_line(label.note)}" if label.note else ""
    return f"{_ranks(label.ranks)}{scores}{note}"


def _ranks(values: Sequence[Rank | None]) -> str:
    return " ".join("-" if value is None else str(value) for value in values)

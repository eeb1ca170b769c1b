"""What a screen works on: a labeler's `Session`, or an adjudicator's `Adjudication`."""

from dataclasses import dataclass
from typing import Protocol

from labeling.store.assignment import NoTask
from labeling.store.judgements import Judgement, Task
from labeling.store.project import Project
from labeling.store.rules import LabelingRules


@dataclass(frozen=True)
class Receipt:
    """A submission is in the database, for good."""

    event_id: int
    repeated: bool = False
    """This submission had arrived before; nothing was added."""
    late: bool = False
    """Its lease had run out; it counts all the same."""


@dataclass(frozen=True)
class LabelerProgress:
    """How far a labeler is."""

    submitted: int
    skipped: int
    submitted_here: int
    seconds_here: float
    """Working time of this session's submissions."""
    num_items: int
    """Items of the project, without gold and qualification items."""
    num_full: int
    """Those of them that have or are about to have all their labels."""

    @property
    def pace(self) -> str:
        """Working time of an item in words; nothing before the first."""
        return f"{self.seconds_here / self.submitted_here:.0f} s each" if self.submitted_here else ""

    @property
    def overall(self) -> str:
        """How far everybody is together, in words."""
        return f"{self.num_full:,} of {self.num_items:,} items full"


class LabelingSession(Protocol):
    """Gives out items one after the other, and takes what is said of them, in the order shown."""

    project: Project
    rules: LabelingRules
    labeler: str

    def next(self) -> Task | NoTask:
        """The item to work on; the same one until it is submitted or skipped."""

    def touch(self, task: Task) -> float:
        """Note a key press that changes nothing."""

    def heartbeat(self, task: Task) -> bool:
        """Say that this terminal is alive; False if the item is no longer its own."""

    def save(self, task: Task, draft: Judgement) -> bool:
        """Keep what has been entered so far; False if the item is no longer this terminal's."""

    def submit(self, task: Task, judgement: Judgement, *, submission: str) -> Receipt:
        """Hand in a judgement. When this returns, it is safe."""

    def submit_and_next(
        self, task: Task, judgement: Judgement, *, submission: str
    ) -> tuple[Receipt, Task | NoTask]:
        """`submit`, and then `next`."""

    def skip(self, task: Task, reason: str) -> None:
        """Leave the item, with a reason."""

    def flag(self, task: Task, reason: str) -> None:
        """Say that something is wrong with the item itself; it stays where it is."""

    def undo(self) -> Task | None:
        """Take back the last submission or skip; None if there is none."""

    def leave(self) -> None:
        """Close this terminal."""

    def progress(self) -> LabelerProgress:
        """How far the labeler is, and all together."""

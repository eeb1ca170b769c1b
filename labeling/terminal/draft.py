"""What a labeler is entering on one item: ranks, scores, a note, the answer in focus, every step back."""

from dataclasses import dataclass, field, replace

from labeling.store.judgements import SCORES, Judgement, Task
from labeling.store.rules import LabelingRules
from rlhf.data.records import FAILED, Rank
from rlhf.errors import UserError

_SUFFIXES = {1: "st", 2: "nd", 3: "rd"}


@dataclass
class Draft:
    """What has been entered on one item. Methods that refuse raise a `UserError` and change nothing."""

    task: Task
    rules: LabelingRules
    judgement: Judgement = field(init=False)
    focus: int = 0
    """The answer that keys are about, counted from 0."""
    _past: list[tuple[Judgement, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.judgement = self.task.draft
        self.focus = self._next_open(-1)

    @property
    def size(self) -> int:
        return len(self.task.completions)

    def rank(self, rank: Rank) -> None:
        """Give the answer in focus a rank, and move to the next that has none.

        Where the rules allow no ties, an answer that had this rank takes the other's in exchange.
        """
        if rank != FAILED and not 1 <= int(rank) <= self.size:
            raise UserError(f"There are {self.size} answers: ranks 1 to {self.size}, or f")
        ranks = list(self.judgement.ranks)
        if not self.rules.ties and rank != FAILED and rank in ranks:
            ranks[ranks.index(rank)] = ranks[self.focus]
        ranks[self.focus] = rank
        self._change(replace(self.judgement, ranks=tuple(ranks)))
        self.focus = self._next_open(self.focus)

    def clear(self) -> None:
        """Take the rank and the score of the answer in focus away."""
        ranks, scores = list(self.judgement.ranks), list(self.judgement.scores)
        ranks[self.focus] = None
        if scores:
            scores[self.focus] = None
        self._change(replace(self.judgement, ranks=tuple(ranks), scores=_unless_empty(scores)))

    def score(self, score: int) -> None:
        """Give the answer in focus a quality score."""
        if not self.rules.quality_scores:
            raise UserError("This project has no quality scores")
        if score not in SCORES:
            raise UserError(f"A quality score is a number from {SCORES[0]} to {SCORES[-1]}")
        scores = list(self.judgement.scores) or [None] * self.size
        scores[self.focus] = score
        self._change(replace(self.judgement, scores=tuple(scores)))

    def note(self, text: str) -> None:
        """Replace the note; the whole of an editing is one step back."""
        self.judgement = replace(self.judgement, note=text)

    def remember(self) -> None:
        """Make what is there now a step that `back` returns to."""
        self._past.append((self.judgement, self.focus))

    def back(self) -> bool:
        """Take the last step back; False if there is none."""
        while self._past:
            judgement, self.focus = self._past.pop()
            if judgement != self.judgement:
                self.judgement = judgement
                return True
        return False

    def final(self) -> Judgement:
        """The judgement, fit to be submitted; otherwise the focus goes to where something is missing."""
        if not self.judgement.complete:
            self.focus = self.judgement.ranks.index(None)
            raise UserError(f"Answer {self.focus + 1} has no rank yet")
        return self.judgement.final(self.size, self.rules)

    def _change(self, new: Judgement) -> None:
        if new != self.judgement:
            self.remember()
            self.judgement = new

    def _next_open(self, after: int) -> int:
        """The next answer without a rank, all round; `after` itself if each has one."""
        for step in range(1, self.size + 1):
            number = (after + step) % self.size
            if self.judgement.ranks[number] is None:
                return number
        return max(after, 0)


def rank_sign(rank: Rank | None) -> str:
    """A rank in words as short as can be, which no answer's number is taken for."""
    if rank is None:
        return "·"
    return "F" if rank == FAILED else f"{rank}{_SUFFIXES.get(int(rank), 'th')}"


def _unless_empty(scores: list[int | None]) -> tuple[int | None, ...]:
    return tuple(scores) if any(score is not None for score in scores) else ()

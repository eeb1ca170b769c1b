"""What a labeler is entering on one item: ranks, scores, a note, the answer in focus, every step back.

A key is about the answer in focus, which the screen marks, and then moves on to the next that waits for
something. One key looks back: what asks for a score right after a rank asks for that answer's, and the focus
goes back to it before the score is typed.
"""

from dataclasses import dataclass, field, replace

from labeling.store.judgements import SCORES, Judgement, Task
from labeling.store.rules import LabelingRules
from rlhf.data.records import FAILED, Rank
from rlhf.errors import UserError

_SUFFIXES = {1: "st", 2: "nd", 3: "rd"}


@dataclass(frozen=True)
class _Step:
    """What was there before a key, or before a note."""

    judgement: Judgement
    focus: int
    is_note: bool = False


@dataclass
class Draft:
    """What has been entered on one item. Methods that refuse raise a `UserError` and change nothing."""

    task: Task
    rules: LabelingRules
    judgement: Judgement = field(init=False)
    is_scoring: bool = field(default=False, init=False)
    """Whether the next digit is a quality score of the answer in focus."""
    just_ranked: int | None = field(default=None, init=False)
    """The answer that the last key ranked, unless it had been scored just before: its score may follow."""
    _focus: int = field(default=0, init=False)
    _before_scoring: int = field(default=0, init=False)
    """Where the focus goes back to if no score is given."""
    _just_scored: bool = field(default=False, init=False)
    """Whether the answer in focus got a score since it came into focus."""
    _past: list[_Step] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.judgement = self.task.draft
        self._focus = self._next_open(self.size - 1)

    @property
    def size(self) -> int:
        return len(self.task.completions)

    @property
    def focus(self) -> int:
        """The answer that keys are about, counted from 0."""
        return self._focus

    @focus.setter
    def focus(self, number: int) -> None:
        """Look at another answer: a score that was asked for is not given."""
        self._focus = number
        self.is_scoring = self._just_scored = False
        self.just_ranked = None

    def digit(self, digit: int) -> None:
        """A score if one is asked for, else a rank; 0 takes the rank away."""
        if self.is_scoring:
            self.score(digit)
        elif digit == 0:
            self.clear()
        else:
            self.rank(digit)

    def rank(self, rank: Rank) -> None:
        """Give the answer in focus a rank, and move on: to one that has none, or else to the next.

        Where the rules allow no ties, an answer that had this rank takes the other's in exchange; it has none
        any more where the other had none, or had failed: that is no place in an order.
        """
        if rank != FAILED and not 1 <= int(rank) <= self.size:
            raise UserError(f"There are {self.size} answers: ranks 1 to {self.size}, or f")
        ranks = list(self.judgement.ranks)
        number, before = self.focus, ranks[self.focus]
        if not self.rules.ties and rank != FAILED and rank in ranks:
            ranks[ranks.index(rank)] = None if before == FAILED else before
        ranks[number] = rank
        had_score = self._just_scored
        self._enter(replace(self.judgement, ranks=tuple(ranks)))
        self.focus = self._next_open(number)
        self.just_ranked = None if had_score else number

    def clear(self) -> None:
        """Take the rank and the score of the answer in focus away."""
        ranks, scores = list(self.judgement.ranks), list(self.judgement.scores)
        ranks[self.focus] = None
        if scores:
            scores[self.focus] = None
        cleared = replace(self.judgement, ranks=tuple(ranks), scores=_unless_empty(scores))
        if cleared != self.judgement:
            self._enter(cleared)
        self.focus = self.focus

    def ask_score(self) -> None:
        """Take the next digit as a score: of the answer just ranked, or else of the one in focus."""
        if not self.rules.quality_scores:
            raise UserError("This project has no quality scores")
        if self.is_scoring:
            return
        before = self.focus
        if self.just_ranked is not None:
            self.focus = self.just_ranked
        self._before_scoring, self.is_scoring, self.just_ranked = before, True, None

    def leave_score(self) -> None:
        """Give no score after all."""
        if self.is_scoring:
            self.focus = self._before_scoring

    def score(self, score: int) -> None:
        """Give the answer in focus a quality score, and move on if it has its rank already."""
        if not self.rules.quality_scores:
            raise UserError("This project has no quality scores")
        if score not in SCORES:
            raise UserError(f"A quality score is a number from {SCORES[0]} to {SCORES[-1]}")
        scores = list(self.judgement.scores) or [None] * self.size
        number = self.focus
        scores[number] = score
        self._enter(replace(self.judgement, scores=tuple(scores)))
        if self.judgement.ranks[number] is None:
            self.focus = number
            self._just_scored = True
        else:
            self.focus = self._next_open(number)

    def note(self, text: str) -> None:
        """Replace the note; the whole of an editing is one step back."""
        self.judgement = replace(self.judgement, note=text)

    def remember(self) -> None:
        """Make what is there now, before a note, a step that `back` returns to."""
        self._past.append(_Step(self.judgement, self.focus, is_note=True))

    def back(self) -> bool:
        """Take the last step back; False if there is none. A note that was left as it was is no step."""
        while self._past:
            step = self._past.pop()
            if not step.is_note or step.judgement != self.judgement:
                self.judgement, self.focus = step.judgement, step.focus
                return True
        return False

    def final(self) -> Judgement:
        """The judgement, fit to be submitted; otherwise the focus goes to where something is missing."""
        if not self.judgement.complete:
            self.focus = self.judgement.ranks.index(None)
            raise UserError(f"Answer {self.focus + 1} has no rank yet")
        return self.judgement.final(self.size, self.rules)

    def _enter(self, new: Judgement) -> None:
        """What a key leads to. A rank given once more is a step, too: the focus moves on."""
        self._past.append(_Step(self.judgement, self.focus))
        self.judgement = new

    def _next_open(self, after: int) -> int:
        """The next answer without a rank, all round; simply the next if each has one."""
        for step in range(1, self.size + 1):
            number = (after + step) % self.size
            if self.judgement.ranks[number] is None:
                return number
        return (after + 1) % self.size


def rank_sign(rank: Rank | None) -> str:
    """A rank in words as short as can be, which no answer's number is taken for."""
    if rank is None:
        return "·"
    return "F" if rank == FAILED else f"{rank}{_SUFFIXES.get(int(rank), 'th')}"


def _unless_empty(scores: list[int | None]) -> tuple[int | None, ...]:
    return tuple(scores) if any(score is not None for score in scores) else ()

"""What a labeler says of an item, complete or not: ranks, a note, and quality scores if there are any."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from labeling.store.rules import LabelingRules
from rlhf.data.records import FAILED, Comparison, Rank, Turns
from rlhf.errors import UserError

MAX_NOTE_CHARACTERS = 10_000
SCORES = range(1, 8)
"""Quality scores, 7 being best."""


@dataclass(frozen=True)
class Judgement:
    """Ranks of K completions in some order; None where the labeler has not decided yet."""

    ranks: tuple[Rank | None, ...]
    scores: tuple[int | None, ...] = ()
    """Quality from 1 to 7 of each completion, or nothing at all."""
    note: str = ""

    @staticmethod
    def empty(num_completions: int) -> "Judgement":
        return Judgement((None,) * num_completions)

    @property
    def complete(self) -> bool:
        return None not in self.ranks

    def checked(self, num_completions: int, rules: LabelingRules) -> "Judgement":
        """This judgement as it is stored: 1 is best, and a rank is one more than the number of better ones.

        Raises:
            UserError: it does not fit the completions or the rules.
        """
        if len(self.ranks) != num_completions:
            raise UserError(
                f"{len(self.ranks)} ranks for {num_completions} completions", fix="Rank each of them once."
            )
        for number, rank in enumerate(self.ranks, start=1):
            whole = isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= num_completions
            if rank is not None and rank != FAILED and not whole:
                raise UserError(
                    f"completion {number} has rank {rank!r}",
                    fix=f'A rank is a number from 1 (best) to {num_completions}, or "F" for a failed one.',
                )
        self._check_scores(num_completions, rules)
        if len(self.note) > MAX_NOTE_CHARACTERS:
            raise UserError(
                f"the note has {len(self.note):,} characters", fix=f"Keep to {MAX_NOTE_CHARACTERS:,}."
            )
        return replace(self, ranks=competition_ranks(self.ranks)) if self.complete else self

    def final(self, num_completions: int, rules: LabelingRules) -> "Judgement":
        """As `checked`, and fit to be submitted.

        Raises:
            UserError: a completion has no rank, or two share one although the rules allow no ties.
        """
        judgement = self.checked(num_completions, rules)
        if not judgement.complete:
            number = judgement.ranks.index(None) + 1
            raise UserError(f"completion {number} has no rank", fix='Give every completion a rank or "F".')
        numbers = [rank for rank in judgement.ranks if rank != FAILED]
        if not rules.ties and len(set(numbers)) < len(numbers):
            raise UserError(
                "two completions share a rank", fix="This project has no ties: decide for one of them."
            )
        return judgement

    def in_own_order(self, shown: Sequence[int]) -> "Judgement":
        """A judgement of completions in the order `shown`, turned into the item's own order."""
        places = sorted(range(len(shown)), key=shown.__getitem__)
        return self._taken(places)

    def in_shown_order(self, shown: Sequence[int]) -> "Judgement":
        """The inverse of `in_own_order`."""
        return self._taken(shown)

    def to_json(self) -> dict[str, Any]:
        return {"ranks": list(self.ranks), "scores": list(self.scores), "note": self.note}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Judgement":
        return Judgement(tuple(values["ranks"]), tuple(values["scores"]), values["note"])

    def _taken(self, places: Sequence[int]) -> "Judgement":
        scores = tuple(self.scores[place] for place in places) if self.scores else ()
        return replace(self, ranks=tuple(self.ranks[place] for place in places), scores=scores)

    def _check_scores(self, num_completions: int, rules: LabelingRules) -> None:
        if not self.scores:
            return
        if not rules.quality_scores:
            raise UserError("this project has no quality scores", fix="Give ranks alone.")
        if len(self.scores) != num_completions:
            raise UserError(f"{len(self.scores)} scores for {num_completions} completions")
        for number, score in enumerate(self.scores, start=1):
            if score is not None and (isinstance(score, bool) or score not in SCORES):
                raise UserError(
                    f"completion {number} has score {score!r}", fix="A score is a whole number from 1 to 7."
                )


@dataclass(frozen=True)
class Task:
    """One item as its labeler sees it: without which model wrote what, and whether the answer is known."""

    item_id: int
    prompt: str | Turns
    completions: tuple[str, ...]
    """In the order shown, which is the labeler's own for this item."""
    draft: Judgement
    """What the labeler had entered when they left it, in the order shown; empty at first."""
    lease_until: float
    """Seconds since 1970 until which nobody else gets the item; entering something prolongs it."""


def competition_ranks(ranks: Sequence[Rank | None]) -> tuple[Rank, ...]:
    """Ranks with the same order and ties in the form 1, 1, 3; "F" stays.

    Numbers alone are compared, so `ranks` must be complete.
    """
    numbers = [rank for rank in ranks if isinstance(rank, int)]
    return tuple(
        1 + sum(other < rank for other in numbers) if isinstance(rank, int) else FAILED for rank in ranks
    )


def ranks_of(comparisons: Sequence[Comparison], num_completions: int) -> tuple[int, ...]:
    """Ranks by the mean probability of winning a comparison; equal means tie, and 1 is best.

    A completion that was not compared counts as one that wins half of its comparisons.
    """
    wins: list[list[float]] = [[] for _ in range(num_completions)]
    for first, second, value in comparisons:
        wins[first].append(value)
        wins[second].append(1 - value)
    strength = [round(sum(own) / len(own), 9) if own else 0.5 for own in wins]
    return tuple(1 + sum(other > own for other in strength) for own in strength)


def implied_pairs(ranks: Sequence[Rank]) -> list[tuple[int, int, int]]:
    """(i, j, 1 if i is better, 0 for a tie, −1 if j is better) of every pair i < j that ranks compare.

    "F" is worse than every number. Two failed completions are not compared and give no pair.
    """
    found = []
    for first, second in combinations(range(len(ranks)), 2):
        a, b = ranks[first], ranks[second]
        if a == FAILED and b == FAILED:
            continue
        place_a, place_b = (float("inf") if rank == FAILED else rank for rank in (a, b))
        found.append((first, second, (place_a < place_b) - (place_a > place_b)))
    return found


def dumps(value: Any) -> str:
    """JSON in ASCII, as every free text is stored."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))

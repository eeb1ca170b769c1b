"""What only the rows of a source together can tell."""

from collections.abc import Collection, Mapping
from typing import Any

from rlhf.data.columns import Columns
from rlhf.data.judgements import Kind, ProbabilityCheck, scores_of_both, verdicts
from rlhf.data.messages import TOOLS
from rlhf.data.records import Demonstration, Prompt, Ranking, Turns
from rlhf.data.unread import UnreadColumns
from rlhf.errors import UserError

_LEAST_REPEATED = 12
"""An answer may begin with a shorter prompt, such as a greeting, by chance."""


class SourceChecks:
    """Sees every row of one source, and each record that comes of one."""

    def __init__(self, probability: str, ignored: Collection[str]) -> None:
        self._probabilities = ProbabilityCheck(probability)
        self._unread = UnreadColumns(ignored)
        self._judging: set[str] = set()
        self._current: frozenset[str] | None = None
        self._judged: list[frozenset[str] | None] = []
        self.repeating: set[int] = set()
        """The places of records whose answers begin with their whole prompt."""
        self._first_repeating = ""

    def see(
        self, row: Mapping[str, Any], columns: Columns, kind: Kind, *, read: Collection[str], where: str
    ) -> None:
        """Look at a row before a record is made of it.

        Raises:
            UserError: a score is not a number, or the probability is that of the second answer.
        """
        self._probabilities.see(columns.values, where, columns.name("chosen"), columns.name("rejected"))
        judging = verdicts(columns.others, kind, columns.name("chosen"), columns.name("rejected"))
        self._judging |= judging
        # `better` and `probability` judge a pair by themselves.
        stated = kind == "pair" and any(name in columns.values for name in ("better", "probability"))
        self._current = None if stated else judging
        beside = columns.beside if kind == "prompt" else {TOOLS}
        names = {columns.name(name) for name in beside}
        if kind == "pair":
            names |= scores_of_both(columns.others, columns.name("chosen"), columns.name("rejected"))
        self._unread.see(row, {*read, *judging, *names})

    def keep(
        self,
        row: Mapping[str, Any],
        made: Prompt | Demonstration | Ranking,
        *,
        read: Collection[str],
        fields: Collection[str],
        where: str,
    ) -> None:
        """Look at the record that was made of the row seen last.

        Raises:
            UserError: a column that nothing reads would be part of its prompt.
        """
        self._unread.refuse_prompt_parts(row, read, made.prompt, fields=fields)
        if _repeats_prompt(made):
            self.repeating.add(len(self._judged))
            self._first_repeating = self._first_repeating or where
        self._judged.append(self._current)

    def check(self) -> None:
        """Call it after the last row.

        Raises:
            UserError: what is given as probabilities may be the number of the better answer, or the answers
                have their prompts in front of them.
        """
        self._probabilities.check()
        if len(self.repeating) >= 2 and 2 * len(self.repeating) > len(self._judged):
            raise UserError(
                f"{len(self.repeating)} of {len(self._judged)} answers begin with their whole prompt, so the "
                "prompt would be there twice",
                where=self._first_repeating,
                fix="Take the prompt off the answers; or, where the whole text is a transcript, leave out "
                "the column of the prompt (`ignore` in the source).",
            )

    def unjudged(self) -> dict[int, str]:
        """Place of a record among those made → a column that judges other rows, and is empty there."""
        found = {}
        for place, stated in enumerate(self._judged):
            missing = set() if stated is None else self._judging - stated
            if missing:
                found[place] = min(missing)
        return found

    def unread(self) -> dict[str, int]:
        """Column that nothing reads → rows in which it says something."""
        return self._unread.counts()


def _repeats_prompt(made: Prompt | Demonstration | Ranking) -> bool:
    """Whether every answer begins with the whole prompt, or with all that the user said last."""
    if isinstance(made, Demonstration):
        answers: tuple[str, ...] = (made.completion,)
    elif isinstance(made, Ranking):
        answers = made.completions
    else:
        return False
    said = _said_last(made.prompt)
    return len(said) >= _LEAST_REPEATED and all(answer.lstrip().startswith(said) for answer in answers)


def _said_last(prompt: str | Turns) -> str:
    return (prompt if isinstance(prompt, str) else prompt[-1].content).strip()

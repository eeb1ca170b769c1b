"""What else a row says of its answers: columns that state a preference, a score or a verdict.

A row has more columns than a schema takes. One of them may say that the second answer is the better one, that
both are as good, or that the only answer is a bad one. Such a column is understood, or refused by its name;
it is never passed over while the others become a record. docs/data-formats.md has the table for users.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from rlhf.data.columns import UnusableRowError
from rlhf.data.judgement_names import (
    BAD,
    BAD_WORDS,
    GAP,
    GOOD,
    LOWER_IS_BETTER,
    MORE_IS_BETTER,
    OF_ANSWERS,
    OF_GROUPS,
    OF_PAIRS,
    SCORE,
    STATUS,
    TIE_WORDS,
    TWIN,
    plain_name,
    speaks_of_second,
)
from rlhf.data.twins import Twin, as_number, is_number, lone, truth, twins
from rlhf.errors import UserError

Kind = Literal["prompt", "answer", "pair", "group"]
"""What a schema's row holds: no answer that is learned from, one answer, two of them, or K."""
Side = Literal["first", "second", "tie"]

CONTRADICTED = "scores contradict the preference"
ONE_SCORE = "one of two scores is missing"
BAD_ANSWER = "the answer is marked as bad"

_LONGEST_STATEMENT = 40
"""Longer text is an answer, a reason or a prompt, and not a label."""


def stated(row: Mapping[str, Any], read: frozenset[str], ignored: frozenset[str]) -> dict[str, Any]:
    """The columns with a short value that nothing reads: those that may state a judgement.

    What is inside an object (`metadata`) counts as `metadata.label`.
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in read or name in ignored:
            continue
        found |= {inner: each for inner, each in _inside(name, value) if inner not in ignored}
        found[name] = value
    return {
        name: value for name, value in found.items() if _is_statement(value) or _is_null_score(name, value)
    }


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is in an object, and in objects in it."""
    if isinstance(value, Mapping):
        for inner, each in value.items():
            yield f"{name}.{inner}", each
            yield from _inside(f"{name}.{inner}", each)


def verdicts(columns: Mapping[str, Any], kind: Kind, first: str = "", second: str = "") -> frozenset[str]:
    """The columns that say whether this row's answer is good, or that score the two of a pair.

    Of two scores it is the first one's column.

    Raises:
        UserError: a score is not a number.
    """
    found = set()
    if kind == "answer":
        for name, value in _given(columns):
            plain = plain_name(name)
            is_verdict = bool(GOOD.fullmatch(plain) or BAD.fullmatch(plain))
            if is_verdict and truth(value) is not None:
                found.add(name)
    elif kind == "pair":
        found = {
            twin.first
            for twin in twins(columns, first, second)
            if twin.kind == "score" and twin.sign is not None
        }
    return frozenset(found)


def scores_of_both(columns: Mapping[str, Any], first: str, second: str) -> set[str]:
    """The columns that say the same of either answer of a pair, and so are compared."""
    found = list(twins(columns, first, second))
    return {name for twin in found for name in (twin.first, twin.second)}


def _check_status(columns: Mapping[str, Any]) -> None:
    """Check what a row says of itself in a word: `status: discarded`.

    Raises:
        UnusableRowError: it was not accepted, or its answer is not whole.
    """
    for name, value in _given(columns):
        if isinstance(value, str) and STATUS.fullmatch(plain_name(name)):
            word = plain_name(value)
            if word in BAD_WORDS:
                raise UnusableRowError(f"{BAD_ANSWER} (`{name}`: {word})")


def check_answer(columns: Mapping[str, Any]) -> None:
    """Check what the other columns say of a row's only answer.

    Raises:
        UnusableRowError: they say that it is a bad one.
        UserError: a column sounds as if it said how good the answer is, and is not understood.
    """
    _check_status(columns)
    for name, value in _given(columns):
        plain = plain_name(name)
        good, bad = GOOD.fullmatch(plain), BAD.fullmatch(plain)
        verdict = truth(value)
        if (good or bad) and verdict is not None:
            if verdict == bool(bad):
                raise UnusableRowError(f"{BAD_ANSWER} (`{name}`)")
        elif plain == "label" or OF_ANSWERS.fullmatch(plain) or ((good or bad) and _could_be_truth(value)):
            raise _not_understood(name, value, "how good the answer is", _KEEP_GOOD)


def check_group(columns: Mapping[str, Any], ranks: Sequence[float] | None = None) -> None:
    """Check what the other columns of a row with `completions` say; of its `ranks`, 1 is the best.

    Raises:
        UnusableRowError: votes for the completions say the opposite of the ranks.
        UserError: a column sounds as if it stated a preference of its own.
    """
    _check_status(columns)
    for name, value in _given(columns):
        if OF_GROUPS.fullmatch(plain_name(name)) or _is_tie_word(value):
            fix = "State the preference once, in `ranks` or in `comparisons`."
            raise _not_understood(name, value, "which completion is better", fix)
        if ranks and TWIN.search(plain_name(name)) and _are_opposite(ranks, value):
            raise UnusableRowError(CONTRADICTED)


def _are_opposite(ranks: Sequence[float], votes: Any) -> bool:
    """Whether more pairs of completions have their votes against their ranks than with them."""
    if not isinstance(votes, list | tuple) or len(votes) != len(ranks):
        return False
    numbers = [number for vote in votes if (number := as_number(vote)) is not None]
    if len(numbers) < len(ranks):
        return False
    agreeing = 0
    for i, j in combinations(range(len(ranks)), 2):
        by_rank = (ranks[i] < ranks[j]) - (ranks[i] > ranks[j])
        by_votes = (numbers[i] > numbers[j]) - (numbers[i] < numbers[j])
        agreeing += by_rank * by_votes
    return agreeing < 0


def check_pair(columns: Mapping[str, Any], first: str, second: str) -> Side | None:
    """What the other columns of a pair say of the answers, which are in the columns `first` and `second`.

    None: nothing. "first" and "second" name the side with the higher score.

    Raises:
        UnusableRowError: one score of two is missing.
        UserError: a column sounds as if it stated a preference, and is not understood.
    """
    _check_status(columns)
    found = list(twins(columns, first, second))
    paired = {name for twin in found for name in (twin.first, twin.second)}
    understood = {name for twin in found if twin.kind != "other" for name in (twin.first, twin.second)}
    found += lone(columns, paired)
    for name, value in _given(columns):
        if name not in understood and (OF_PAIRS.fullmatch(plain_name(name)) or _is_tie_word(value)):
            raise _not_understood(name, value, "which answer is better", _NAME_IT)
        gap = as_number(value) if GAP.fullmatch(plain_name(name)) else None
        if gap is not None and gap <= 0:
            raise _not_understood(name, value, "which answer is better", _NAME_IT)
    return _side_of(found, columns)


def _side_of(found: list[Twin], columns: Mapping[str, Any]) -> Side | None:
    """The side that all scores and verdicts speak for."""
    for twin in found:
        if twin.kind == "other" and twin.sign == -1:
            raise _not_understood(twin.first, columns[twin.first], "which answer is better", _NAME_IT)
    scores = [twin for twin in found if twin.kind == "score" and not _both_missing(twin, columns)]
    if any(twin.sign is None for twin in scores):
        raise UnusableRowError(ONE_SCORE)
    # Two answers that are both safe are no tie: one of them may be the better one all the same.
    signs = {twin.sign for twin in scores} | {
        twin.sign for twin in found if twin.kind == "verdict" and twin.sign
    }
    if not signs:
        return None
    if signs == {0}:
        return "tie"
    if {1, -1} <= signs:
        raise UnusableRowError(CONTRADICTED)
    return "first" if 1 in signs else "second"


def _both_missing(twin: Twin, columns: Mapping[str, Any]) -> bool:
    return not is_number(columns.get(twin.first)) and not is_number(columns.get(twin.second))


def sounds_like_index(column: str) -> bool:
    """Whether a column's name says that it holds the number or name of an answer, not a probability."""
    plain = plain_name(column)
    if re.fullmatch(r"(.*_)?(prob|probs|probability|soft_label|p)(_.*)?", plain):
        return False
    return bool(
        re.fullmatch(r"(.*_)?(id|ids|index|idx|number|position|winners?|choices?|labels?)", plain)
    ) or (
        plain
        in ("preference", "preferred", "overall_preference", "better", "safer", "best", "vote", "verdict")
    )


def sounds_like_scores(column: str) -> bool:
    """Whether a column's name says that more is better in it: ranks are the other way round."""
    plain = plain_name(column)
    if re.fullmatch(rf"(.*_)?({SCORE}|votes|upvotes|points|likes|elo)(_.*)?", plain):
        return True
    if re.search(r"(^|_)(rank(s|ing|ings)?|order|place)(_|$)", plain) or LOWER_IS_BETTER.fullmatch(plain):
        return False
    return MORE_IS_BETTER.search(plain) is not None


class ProbabilityCheck:
    """Whether the probabilities of one source may be something else: the number of the better answer.

    Nothing but 0 and 1 is an index as well as a probability, and the two readings are opposites.
    """

    def __init__(self, column: str = "probability") -> None:
        self._column = column
        self._is_named_index = sounds_like_index(column)
        self._where: str | None = None
        self._fractional = False
        self._of_comparison = False

    def see(self, values: Mapping[str, Any], where: str, first: str = "", second: str = "") -> None:
        """Look at a row's `probability` and `comparisons`; wrong types are found elsewhere.

        Raises:
            UserError: the probability's name says that it is of the answer in the column `second`.
        """
        if "probability" in values:
            self._check_side(first or "chosen", second or "rejected")
            self._see(values["probability"], where)
        comparisons = values.get("comparisons")
        if isinstance(comparisons, list | tuple):
            for each in comparisons:
                if isinstance(each, list | tuple) and len(each) == 3:
                    self._see(each[2], where, of_comparison=True)

    def _check_side(self, first: str, second: str) -> None:
        if speaks_of_second(self._column, first, second):
            raise UserError(
                f"`{self._column}` sounds like the probability that the second answer (`{second}`) is the "
                f"better one, and `probability` is that of the first (`{first}`)",
                fix=f"Exchange the two: `columns: {{chosen: {second}, rejected: {first}, probability: "
                f"{self._column}}}`. If it is of the first answer, rename the column (`probability`).",
            )

    def _see(self, value: Any, where: str, *, of_comparison: bool = False) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if value not in (0, 0.5, 1):
            self._fractional = True
        # In comparisons 0.0 is a probability like any other: they are written in the order of completions.
        is_zero = value == 0 and not of_comparison
        odd = isinstance(value, int) or self._is_named_index or is_zero
        if odd and self._where is None:
            self._where, self._of_comparison = where, of_comparison

    def check(self) -> None:
        """Call it after the last row.

        Raises:
            UserError: the numbers may be an index.
        """
        if self._where is not None and not self._fractional:
            if self._of_comparison:
                raise UserError(
                    "every comparison is 0 or 1, so its last number may be that of the better completion",
                    where=self._where,
                    fix="Put the better completion first: [better, worse, 1.0]; or give `ranks`.",
                )
            raise UserError(
                f"every probability is 0 or 1, so `{self._column}` may be the number of the better answer",
                where=self._where,
                fix="Say what the values mean: `columns: {better: COLUMN}` with `choices: "
                '{"0": first, "1": second}`, or the other way round. If they are probabilities that the '
                "first answer is better, put the better one first and leave them out.",
            )


_NAME_IT = (
    "If it says which answer is better, name it and what its values mean, for example `columns: {{chosen: "
    'answer_0, rejected: answer_1, better: {name}}}` with `choices: {{"0": first, "1": second}}`; '
    "if not, list it under the source's `ignore`."
)
_KEEP_GOOD = (
    "Where it is true or false, answers marked as bad are left out. Else take them out of the file, "
    "and list `{name}` under the source's `ignore`."
)


def _not_understood(name: str, value: Any, states: str, fix: str) -> UserError:
    text = repr(value)
    shown = text if len(text) <= _LONGEST_STATEMENT else f"{text[: _LONGEST_STATEMENT - 3]}..."
    if "ignore" not in fix:
        fix += " If the column says something else, list it under the source's `ignore`."
    return UserError(
        f"column `{name}` ({shown}) seems to say {states}, and nothing reads it", fix=fix.format(name=name)
    )


def _given(columns: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in columns.items() if value is not None)


def _could_be_truth(value: Any) -> bool:
    """Whether it is another way to write true or false."""
    words = ("yes", "no", "y", "n", "0", "1", "0.0", "1.0", "good", "bad", "t", "f", "-1")
    if isinstance(value, str):
        return value.strip().lower() in words
    return isinstance(value, int | float)


def _is_tie_word(value: Any) -> bool:
    return isinstance(value, str) and TIE_WORDS.fullmatch(value.strip().lower()) is not None


def _is_null_score(name: str, value: Any) -> bool:
    """A score that is missing says something where the other answer has one."""
    is_blank = value is None or (isinstance(value, str) and not value.strip())
    return is_blank and TWIN.search(plain_name(name)) is not None


def _is_statement(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value.strip()) <= _LONGEST_STATEMENT
    return value is not None

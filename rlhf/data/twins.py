"""Two columns with the same said of either answer: `score_chosen` and `score_rejected`."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.data.judgement_names import BAD, GOOD, LOWER_IS_BETTER, NO_JUDGEMENT, TWIN, plain_name
from rlhf.errors import UserError

_WORDS = (("chosen", "rejected"), ("better", "worse"), ("preferred", "dispreferred"), ("winner", "loser"))
"""What names say of the first and the second answer, whatever the columns of the answers are called."""

_ROUNDING = 1e-9
"""Scores that differ by less of their size are equal: 0.1 + 0.2 and 0.3."""


@dataclass(frozen=True)
class Twin:
    """A column of the first answer, that of the second, and which answer they speak for."""

    first: str
    second: str
    kind: Literal["score", "verdict", "other"]
    sign: int | None
    """1: the first answer, -1: the second, 0: neither; None: a value is missing."""


def twins(columns: Mapping[str, Any], first: str, second: str) -> Iterator[Twin]:
    """Every such pair of columns beside answers that are in the columns `first` and `second`.

    Raises:
        UserError: a score is not a number.
    """
    plain = {plain_name(name): name for name in columns}
    fixed = set(_WORDS)
    for word, other in sorted({*fixed, *_sides(plain_name(first), plain_name(second))}):
        own = _word(word)
        for name in plain:
            twin = own.sub(rf"\g<1>{other}\g<2>", name)
            if twin != name and twin in plain:
                found = _twin(columns, plain[name], plain[twin], own, (word, other) in fixed)
                if found is not None:
                    yield found


def lone(columns: Mapping[str, Any], names: set[str]) -> Iterator[Twin]:
    """Columns of one answer alone, but for `names`: what they say, as far as it can be told."""
    for name, value in columns.items():
        for word, other, sign in (("chosen", "rejected", 1), ("rejected", "chosen", -1)):
            plain = plain_name(name)
            stem = _stem(plain, _word(word))
            if name in names or not _word(word).search(plain) or NO_JUDGEMENT.fullmatch(stem):
                continue
            good, bad = GOOD.fullmatch(stem), BAD.fullmatch(stem)
            verdict = truth(value)
            if (good or bad) and verdict is not None:
                against = verdict == bool(bad) if sign == 1 else False
                yield Twin(name, other, "verdict", -1 if against else 0)
            elif TWIN.search(plain) and is_number(value):
                yield Twin(name, other, "score", None)


def truth(value: Any) -> bool | None:
    """True or false, also as the text of a table; None: it is neither."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return None


def as_number(value: Any) -> int | float | None:
    """A number, also as the text of a table; None: it is none."""
    parsed = _parsed(value) if isinstance(value, str) else value
    if isinstance(parsed, bool) or not isinstance(parsed, int | float) or _is_nan(parsed):
        return None
    return parsed


def is_number(value: Any) -> bool:
    """Whether it is a number, also as the text of a table."""
    return as_number(value) is not None


def _sides(first: str, second: str) -> list[tuple[str, str]]:
    """The names of the answers' columns, and the one word in which they differ: `a` and `b`."""
    found = [(first, second)]
    ours = first.split("_")
    theirs = second.split("_")
    differing = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
    if len(ours) == len(theirs) and len(differing) == 1:
        found += differing
    return found


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(^|_){re.escape(word)}(_|$)")


def _stem(plain: str, own: re.Pattern[str]) -> str:
    return own.sub("_", plain).strip("_")


def _twin(
    columns: Mapping[str, Any], ours: str, theirs: str, own: re.Pattern[str], any_stem: bool
) -> Twin | None:
    """What two columns say; None: nothing of which answer is better."""
    stem = _stem(plain_name(ours), own)
    if NO_JUDGEMENT.fullmatch(stem):
        return None
    values = (columns[ours], columns[theirs])
    good, bad = GOOD.fullmatch(stem), BAD.fullmatch(stem)
    turn = -1 if bad or LOWER_IS_BETTER.fullmatch(stem) else 1
    if TWIN.search(plain_name(ours)):
        numbers = [_number(name, columns[name]) for name in (ours, theirs)]
        score = _sign(numbers[0], numbers[1])
        return Twin(ours, theirs, "score", score and turn * score)
    verdicts = [truth(value) for value in values]
    if None not in verdicts and (good or bad or any_stem):
        sign = _sign(float(bool(verdicts[0])), float(bool(verdicts[1]))) or 0
        return Twin(ours, theirs, "verdict" if good or bad else "other", turn * sign)
    if any_stem and all(is_number(value) for value in values):
        sign = _sign(_number(ours, values[0]), _number(theirs, values[1])) or 0
        return Twin(ours, theirs, "verdict" if good or bad else "other", turn * sign)
    return None


def _sign(first: float | None, second: float | None) -> int | None:
    if first is None or second is None:
        return None
    if math.isclose(first, second, rel_tol=_ROUNDING):
        return 0
    return (first > second) - (first < second)


def _number(name: str, value: Any) -> float | None:
    """A score; None where there is none.

    Raises:
        UserError: it is not a number.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if value is None or _is_nan(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        fix = "Write the scores of both answers as numbers, or list the columns under the source's `ignore`."
        raise UserError(f"score `{name}` is {value!r}, not a number", fix=fix)
    try:
        return float(value)
    except OverflowError:
        fix = "Write a smaller number, or list the columns under the source's `ignore`."
        raise UserError(f"score `{name}` is a number too large to compare", fix=fix) from None


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _parsed(text: str) -> float | str | None:
    """Text of a file that has nothing but text: CSV."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text

"""What else a row says of its answers: columns that state a preference, a score or a verdict.

A row has more columns than a schema takes. One of them may say that the second answer is the better one, that
both are as good, or that the only answer is a bad one. Such a column is understood, or refused by its name;
it is never passed over while the others become a record. docs/data-formats.md has the table for users.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rlhf.data.columns import UnusableRowError
from rlhf.errors import UserError

Kind = Literal["prompt", "answer", "pair", "group"]
"""What a schema's row holds: no answer that is learned from, one answer, two of them, or K."""
Side = Literal["first", "second", "tie"]

CONTRADICTED = "scores contradict the preference"
ONE_SCORE = "one of two scores is missing"
BAD_ANSWER = "the answer is marked as bad"

_LONGEST_STATEMENT = 40
"""Longer text is an answer, a reason or a prompt, and not a label."""

_SCORE = r"(scores?|ratings?|rewards?|grades?)"
_SIDE = (
    r"(\d|[ab]|first|second|one|two|model_?[ab]|(answer|response|output|completion|reply|summary)_?[\dab])"
)
_TWIN = re.compile(rf"(^|_)({_SCORE}|votes?|upvotes?|likes?|points|stars|elo|quality|helpfulness)(_|$)")

# Columns whose names say that they hold a judgement. A name is compared in lower case with `_` between words.
_OF_PAIRS = re.compile(
    "|".join(
        (
            r"(.*_)?labels?|label_.*",
            r"(.*_)?(preferences?|prefs?|preferred)(_.*)?",
            r"(.*_)?winners?(_.*)?|wins?|won|(.*_)?(better|safer|worse|best|worst)(_.*)?",
            r"(chosen|rejected|selected|picked|correct)_(index|idx|number|no|position|side|first)",
            r"(is_|was_)?(swap|swapped|flip|flipped|invert|inverted|reversed?)(_.*)?",
            r"(.*_)?(choices?|votes?|verdicts?|judge?ments?|decision|outcome|result|annotations?)",
            r"(is_)?(ties?|tied|draw)|annotators?_?\d+",
            r"margins?|margin_.*|(.*_)?(confidence|probabilit(y|ies)|probs?|elo|strength)",
            r"p(rob|robability)?_(chosen|rejected|first|second|better|win|[ab\d])",
            r"(.*_)?(chosen|rejected)_(ranks?|place)|(ranks?|place)_(chosen|rejected)",
            rf"{_SCORE}_(diff|difference|gap|delta|margin|ratio)",
            rf"(overall_|average_|avg_|mean_|raw_)?{_SCORE}|ranks?|rankings?|comparisons?",
            rf"(.*_)?({_SCORE}|ranks?|likert|helpfulness|harmlessness|correctness|quality)_?{_SIDE}",
            rf"{_SIDE}_({_SCORE}|ranks?|likert|helpfulness|harmlessness|correctness|quality)",
            r"is_(answer|response|output|completion)_?[\dab]_.*|(response|answer)_?[\dab]_severity_level",
        )
    )
)
_OF_GROUPS = re.compile(
    "|".join(
        (
            r"chosen|rejected|(.*_)?labels?|(.*_)?(preferences?|prefs?|preferred)(_.*)?",
            r"(.*_)?winners?(_.*)?|(.*_)?(better|safer|worse|best|worst)(_.*)?",
            r"(.*_)?(choices?|votes?|verdicts?|judge?ments?|decision|annotations?)|(is_)?(ties?|tied)",
            r"(chosen|rejected|selected|picked|correct)_(index|idx|number|no|position)",
            r"(overall_|average_|avg_|mean_)?(scores|ratings?|rewards?|grades?)|probabilit(y|ies)",
        )
    )
)
_OF_ANSWERS = re.compile(
    "|".join(
        (
            rf"(overall_|average_|avg_|mean_|quality_|human_)?{_SCORE}|quality|overall|likert|rank",
            r"helpfulness|harmlessness|correctness|coherence|honesty|truthfulness|instruction_following",
            r"(.*_)?(preferences?|votes?|verdicts?|judge?ments?|labels?)|upvotes?|downvotes?|thumbs|feedback"
            r"|likes|stars|satisfaction|toxicity|harmfulness|severity(_level)?",
            r"(.*_)?(winners?|better|safer|best|preferred)(_.*)?|is_.*_safe|annotators?_?\d+|probability",
        )
    )
)
_GOOD = re.compile(
    r"label|kto(_tag|_label)?|(is_|was_)?(desirable|safe|correct|accepted|acceptable|approved|chosen"
    r"|preferred|selected|good|helpful|harmless|passed|valid|best)|thumbs_up|liked|upvoted|(.*_)?is_safe"
)
_BAD = re.compile(
    r"(is_|was_)?(undesirable|unsafe|harmful|toxic|flagged|rejected|bad|wrong|incorrect|invalid|failed"
    r"|refused|spam|deleted)|thumbs_down|disliked|downvoted"
)
_TIE_WORDS = re.compile(
    r"ties?( ?\(.*\))?|tied|draw|equal|both( |_)?(good|bad)?|neither|\(?same\)?|"
    r"model_?[ab]|(response|answer|output|completion|assistant)[ _]?[\dab]|\[\[[abc]\]\]|[ab] ?[<>=]+ ?[ab]|"
    r"first|second|left|right|chosen|rejected|swapped|flipped"
)


def stated(row: Mapping[str, Any], read: frozenset[str], ignored: frozenset[str]) -> dict[str, Any]:
    """The columns with a short value that nothing reads: those that may state a judgement.

    What is inside an object (`metadata`) counts as `metadata.label`.
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in read or name in ignored:
            continue
        inside = value.items() if isinstance(value, Mapping) else ()
        found |= {f"{name}.{inner}": each for inner, each in inside if f"{name}.{inner}" not in ignored}
        found[name] = value
    return {
        name: value for name, value in found.items() if _is_statement(value) or _is_null_score(name, value)
    }


def check_answer(columns: Mapping[str, Any]) -> None:
    """Check what the other columns say of a row's only answer.

    Raises:
        UnusableRowError: they say that it is a bad one.
        UserError: a column sounds as if it said how good the answer is, and is not understood.
    """
    for name, value in _given(columns):
        plain = _plain(name)
        good, bad = _GOOD.fullmatch(plain), _BAD.fullmatch(plain)
        verdict = _truth(value)
        if (good or bad) and verdict is not None:
            if verdict == bool(bad):
                raise UnusableRowError(f"{BAD_ANSWER} (`{name}`)")
        elif plain == "label" or _OF_ANSWERS.fullmatch(plain) or ((good or bad) and _could_be_truth(value)):
            raise _not_understood(name, value, "how good the answer is", _KEEP_GOOD)


def check_group(columns: Mapping[str, Any]) -> None:
    """Check what the other columns of a row with `completions` say.

    Raises:
        UserError: a column sounds as if it stated a preference of its own.
    """
    for name, value in _given(columns):
        if _OF_GROUPS.fullmatch(_plain(name)) or _is_tie_word(value):
            fix = "State the preference once, in `ranks` or in `comparisons`."
            raise _not_understood(name, value, "which completion is better", fix)


def check_pair(columns: Mapping[str, Any], first: str, second: str) -> Side | None:
    """What the other columns of a pair say of the answers, which are in the columns `first` and `second`.

    None: nothing. "first" and "second" name the side with the higher score.

    Raises:
        UnusableRowError: one score of two is missing.
        UserError: a column sounds as if it stated a preference, and is not understood.
    """
    twins = list(_twins(columns, _plain(first), _plain(second)))
    understood = {name for names in twins for name in names}
    for name, value in _given(columns):
        if name not in understood and (_OF_PAIRS.fullmatch(_plain(name)) or _is_tie_word(value)):
            raise _not_understood(name, value, "which answer is better", _NAME_IT)
    signs = set()
    for ours, theirs in twins:
        higher, lower = _number(ours, columns.get(ours)), _number(theirs, columns.get(theirs))
        if (higher is None) != (lower is None):
            raise UnusableRowError(ONE_SCORE)
        if higher is not None and lower is not None:
            signs.add((higher > lower) - (higher < lower))
    if not signs:
        return None
    if signs == {0}:
        return "tie"
    if {1, -1} <= signs:
        raise UnusableRowError(CONTRADICTED)
    return "first" if 1 in signs else "second"


def sounds_like_index(column: str) -> bool:
    """Whether a column's name says that it holds the number or name of an answer, not a probability."""
    plain = _plain(column)
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
    return bool(re.fullmatch(rf"(.*_)?({_SCORE}|votes|upvotes|points|likes|elo)(_.*)?", _plain(column)))


class ProbabilityCheck:
    """Whether the probabilities of one source may be something else: the number of the better answer.

    Nothing but 0 and 1 is an index as well as a probability, and the two readings are opposites.
    """

    def __init__(self, column: str = "probability") -> None:
        self._column = column
        self._is_named_index = sounds_like_index(column)
        self._where: str | None = None
        self._fractional = False

    def see(self, values: Mapping[str, Any], where: str) -> None:
        """Look at a row's `probability` and `comparisons`; wrong types are found elsewhere."""
        if "probability" in values:
            self._see(values["probability"], where, zero_is_odd=True)
        comparisons = values.get("comparisons")
        if isinstance(comparisons, list | tuple):
            for each in comparisons:
                if isinstance(each, list | tuple) and len(each) == 3:
                    self._see(each[2], where, zero_is_odd=False)

    def _see(self, value: Any, where: str, *, zero_is_odd: bool) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if value not in (0, 0.5, 1):
            self._fractional = True
        odd = isinstance(value, int) or self._is_named_index or (zero_is_odd and value == 0)
        if odd and self._where is None:
            self._where = where

    def check(self) -> None:
        """Call it after the last row.

        Raises:
            UserError: the numbers may be an index.
        """
        if self._where is not None and not self._fractional:
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


def _twins(columns: Mapping[str, Any], first: str, second: str) -> Iterator[tuple[str, str]]:
    """Pairs of columns with a score of each answer: `score_chosen` and `score_rejected`."""
    plain = {_plain(name): name for name in columns}
    for word, other in {(first, second), ("chosen", "rejected")}:
        own = re.compile(rf"(^|_){re.escape(word)}(_|$)")
        for name in plain:
            if not _TWIN.search(name) or not own.search(name):
                continue
            twin = own.sub(rf"\g<1>{other}\g<2>", name)
            if twin in plain:
                yield plain[name], plain[twin]


def _number(name: str, value: Any) -> float | None:
    """A score; None where there is none.

    Raises:
        UserError: it is not a number.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        fix = "Write the scores of both answers as numbers, or list the columns under the source's `ignore`."
        raise UserError(f"score `{name}` is {value!r}, not a number", fix=fix)
    return float(value)


def _parsed(text: str) -> float | str | None:
    """Text of a file that has nothing but text: CSV."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _truth(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return None


def _could_be_truth(value: Any) -> bool:
    """Whether it is another way to write true or false."""
    words = ("yes", "no", "y", "n", "0", "1", "0.0", "1.0", "good", "bad", "t", "f", "-1")
    if isinstance(value, str):
        return value.strip().lower() in words
    return isinstance(value, int | float)


def _is_tie_word(value: Any) -> bool:
    return isinstance(value, str) and _TIE_WORDS.fullmatch(value.strip().lower()) is not None


def _is_null_score(name: str, value: Any) -> bool:
    """A score that is missing says something where the other answer has one."""
    return value is None and _TWIN.search(_plain(name)) is not None


def _is_statement(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value.strip()) <= _LONGEST_STATEMENT
    return value is not None


def _plain(name: str) -> str:
    """A column's name in lower case, with `_` between its words; without the object that it is in."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2].strip())
    return re.sub(r"[^0-9a-z]+", "_", words.lower()).strip("_")

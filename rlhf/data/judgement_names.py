"""Names of columns that sound as if they stated a preference, a score or a verdict."""

import re

SCORE = r"(scores?|ratings?|rewards?|grades?)"
_SIDE = (
    r"(\d|[ab]|first|second|one|two|model_?[ab]|(answer|response|output|completion|reply|summary)_?[\dab])"
)
TWIN = re.compile(
    rf"(^|_)({SCORE}|votes?|upvotes?|likes?|points|stars|elo|quality|helpfulness|win_?rate|wins|rm)(_|$)"
)

# Columns whose names say that they hold a judgement. A name is compared in lower case with `_` between words.
OF_PAIRS = re.compile(
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
            r"p(rob|robability)?_(chosen|rejected|first|second|better|worse|winner|loser|win|[ab\d])(_.*)?",
            r"(.*_)?(chosen|rejected)_(ranks?|place)|(ranks?|place)_(chosen|rejected)",
            rf"{SCORE}_(diff|difference|gap|delta|margin|ratio)",
            rf"(overall_|average_|avg_|mean_|raw_)?{SCORE}|ranks?|rankings?|comparisons?",
            rf"(.*_)?({SCORE}|ranks?|likert|helpfulness|harmlessness|correctness|quality)_?{_SIDE}",
            rf"{_SIDE}_({SCORE}|ranks?|likert|helpfulness|harmlessness|correctness|quality)",
            rf"(votes?|upvotes?|likes?|wins?|points|stars|elo|win_?rate)_?{_SIDE}",
            r"selections?|selected|picked|humans?|(is_)?correct|prefers?",
            r"is_(answer|response|output|completion)_?[\dab]_.*|(response|answer)_?[\dab]_severity_level",
        )
    )
)
OF_GROUPS = re.compile(
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
OF_ANSWERS = re.compile(
    "|".join(
        (
            rf"(overall_|average_|avg_|mean_|quality_|human_)?{SCORE}|quality|overall|likert|rank",
            r"helpfulness|harmlessness|correctness|coherence|honesty|truthfulness|instruction_following",
            r"(.*_)?(preferences?|votes?|verdicts?|judge?ments?|labels?)|upvotes?|downvotes?|thumbs|feedback"
            r"|likes|stars|satisfaction|toxicity|harmfulness|severity(_level)?",
            r"(.*_)?(winners?|better|safer|best|preferred)(_.*)?|is_.*_safe|annotators?_?\d+|probability",
        )
    )
)
GOOD = re.compile(
    r"label|kto(_tag|_label)?|success(ful)?|succeeded|review_result|((?!user|author|email|account).*_)?(verify|verified)"
    r"|(.*_)?is_correct|(is_|was_)?(desirable|safe|correct|accepted|acceptable|approved|chosen"
    r"|preferred|selected|good|helpful|harmless|passed|valid|best)|thumbs_up|liked|upvoted|(.*_)?is_safe"
)
BAD = re.compile(
    r"(is_|was_)?(undesirable|unsafe|harmful|toxic|flagged|rejected|bad|wrong|incorrect|invalid|failed"
    r"|refused|spam|deleted)|thumbs_down|disliked|downvoted"
)
TIE_WORDS = re.compile(
    r"ties?( ?\(.*\))?|tied|draw|equal|both( |_)?(good|bad)?|neither|\(?same\)?|"
    r"model_?[ab]|(response|answer|output|completion|assistant)[ _]?[\dab]|\[\[[abc]\]\]|[ab] ?[<>=]+ ?[ab]|"
    r"first|second|left|right|chosen|rejected|swapped|flipped"
)
STATUS = re.compile(r"(.*_)?(status|state)|review(_result)?|(finish|stop|finished|done)_reasons?")
"""Columns that say in a word whether an answer was accepted, or is whole."""
BAD_WORDS = frozenset(
    [
        "discarded",
        "rejected",
        "failed",
        "failure",
        "error",
        "invalid",
        "declined",
        "denied",
        "refused",
        "cancelled",
        "canceled",
        "incomplete",
        "flagged",
        "deleted",
        "removed",
        "spam",
        "timeout",
        "timed_out",
        "wrong",
        "incorrect",
        "draft",
        "pending",
        "unreviewed",
        "length",
        "max_tokens",
        "max_length",
        "model_length",
        "content_filter",
        "truncated",
    ]
)
GAP = re.compile(r"(.*_)?(delta|gap|diff|difference)")
"""How much better the first answer is."""
LOWER_IS_BETTER = re.compile(
    r"(.*_)?(ranks?|place|toxic(ity)?|harm(ful(ness)?|s)?|unsafe(ty)?|severity|errors?|bias|hallucinations?"
    r"|violations?|risk|penalty|distance|refusals?|downvotes?|dislikes?)(_.*)?"
)
MORE_IS_BETTER = re.compile(
    r"(^|_)(quality|overall|likert|helpful(ness)?|harmless(ness)?|correct(ness)?|coherence|honesty|truthful(ness)?"
    r"|instruction_following|accuracy|relevance|fluency|usefulness|upvotes?|votes?|likes?|stars|points|thumbs"
    r"|feedback|satisfaction|probabilit(y|ies)|probs?|win_?rates?|wins|rm|utility|values?)(_|$)"
)
"""The names of columns that are no ranks, of which 1 is the best."""
NO_JUDGEMENT = re.compile(
    r"(.*_)?(tokens?|len|lengths?|words?|chars?|characters?|ids?|idx|index|count|num|turns?|time|times|latency"
    r"|seconds|ms|seed|temperature|cost|price|position|year|date|timestamp|created|created_at|size|logps?"
    r"|logprobs?|perplexity|ppl|loss|kl|model|models|name|source|reason|rationale|explanation|type|version"
    r"|hash)(_.*)?"
)
"""What two answers may have more or less of without one of them being better for it."""


def plain_name(name: str) -> str:
    """A column's name in lower case, with `_` between its words; without the object that it is in."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2].strip())
    return re.sub(r"[^0-9a-z]+", "_", words.lower()).strip("_")


_FIRST_WORDS = frozenset(("a", "first", "left", "chosen", "better", "preferred", "winner", "winning"))
_SECOND_WORDS = frozenset(
    (
        "b",
        "2",
        "second",
        "two",
        "right",
        "rejected",
        "worse",
        "dispreferred",
        "unpreferred",
        "loser",
        "losing",
    )
)
_LOSES = frozenset(("lose", "loses", "lost", "loss", "losing", "worse", "inferior"))
_WINS = frozenset(("win", "wins", "won", "better", "over", "beats", "preferred", "than", "vs", "versus"))
_OF_NO_SIDE = frozenset(("p", "prob", "probs", "probability", "answer", "response", "text", "output"))


def speaks_of_second(column: str, first: str, second: str) -> bool:
    """Whether a probability's name says that it is of the answer in the column `second`.

    The side that it names first counts: `p_chosen_over_rejected`. What the answers' own columns are called
    goes before what is usual: of `response_b` and `response_a` in this order, `b` is the first.
    """
    ours = _name_words(first)
    theirs = _name_words(second)
    of_first = (_FIRST_WORDS - set(theirs)) | (set(ours) - set(theirs))
    of_second = (_SECOND_WORDS - set(ours)) | (set(theirs) - set(ours))
    of_first -= _OF_NO_SIDE
    of_second -= _OF_NO_SIDE | of_first
    words = _name_words(column)
    named = [word for word in words if word in of_first | of_second]
    is_second = bool(named) and named[0] in of_second
    rest = [word for word in words if not named or word != named[0]]
    loses = any(word in _LOSES for word in rest) and not any(word in _WINS for word in rest)
    return is_second != loses


def _name_words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", plain_name(name))

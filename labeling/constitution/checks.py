"""Whether a judge says anything: labels that no response had a part in look healthy in every other number."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, StatisticsError, correlation
from typing import Literal

from labeling.constitution.preferences import Judged
from labeling.constitution.revisions import Draft
from labeling.sanitize import sanitize_line
from rlhf.data.records import prompt_key

Level = Literal["worthless", "doubtful", "note"]
"""Worthless labels are published only if the recipe wants them; after doubtful ones no next step is named."""

FLAT = 0.005
"""A probability no further from one half says nothing."""
FLAT_SHARE = 0.98
MIN_PAIRS = 20
"""Fewer opinions do not tell a weak judge from none."""
MIN_ONE_SIDED = 6
"""So many opinions that name the same position in both orders are no accident."""
MAX_P_VALUE = 0.001
MIN_TEXTS = 3
"""Fewer prompts do not tell whether texts are the same for all."""
SAME_SHARE, MANY = 0.95, 20


@dataclass(frozen=True)
class Finding:
    """What is wrong with labels, and what may help."""

    level: Level
    what: str
    fix: str


OTHER_JUDGE = (
    "Read some of its replies; choose another model, or another way of reading choices "
    "(`feedback.endpoint.answers`)."
)
OTHER_REVISER = "Read some of its replies; choose another model, or other principles."


def swap_correlation(judged: Sequence[Judged]) -> float | None:
    """Of the log-odds for the response shown first, in one order and in the other, over all opinions.

    −1 for a judge that looks at the responses alone, whatever its bias; 0 for answers in which they had no
    part; above 0 where the prompt decides which position is liked. None where one order has no variation.
    """
    pairs = _log_odds(judged)
    try:
        return correlation([forward for forward, _ in pairs], [backward for _, backward in pairs])
    except StatisticsError:
        return None


def check_preferences(judged: Sequence[Judged]) -> list[Finding]:
    """What keeps preferences from being any."""
    probabilities = [p for item in judged for _, _, p in item.comparisons]
    if not probabilities:
        return []
    flat = sum(abs(p - 0.5) <= FLAT for p in probabilities)
    if flat >= FLAT_SHARE * len(probabilities):
        return [_flat(judged, flat, len(probabilities))]
    found = _one_sided(judged)
    distinct = {round(p, 6) for p in probabilities}
    if len(distinct) == 1 and len(probabilities) >= MIN_PAIRS:
        what = f"all {len(probabilities):,} pairs have the same probability, {probabilities[0]:.3f}"
        fix = f"That is right only if the better completion always stands first. {OTHER_JUDGE}"
        found.append(Finding("doubtful", what, fix))
    return found


def check_revisions(drafts: Sequence[Draft]) -> list[Finding]:
    """What keeps revisions from being any."""
    steps = [pair for draft in drafts for pair in _steps(draft)]
    if len(steps) < MIN_TEXTS:
        return []
    found = []
    unchanged = sum(before == after for before, after in steps)
    if unchanged == len(steps):
        what = f"all {len(steps):,} revisions are the text before, unchanged"
        found.append(Finding("worthless", what, OTHER_REVISER))
    elif len(steps) >= MANY and unchanged >= SAME_SHARE * len(steps):
        what = f"{unchanged:,} of {len(steps):,} revisions are the text before, unchanged"
        found.append(Finding("doubtful", what, OTHER_REVISER))
    found += _the_same("revision", _by_prompt(drafts, _last_revision), worthless=True)
    found += _the_same("critique", _by_prompt(drafts, _first_critique), worthless=False)
    return found


def _flat(judged: Sequence[Judged], flat: int, number: int) -> Finding:
    first = [value > 0 for pair in _log_odds(judged) for value in pair if value]
    share = f"; the response shown first was named {sum(first):,} of {len(first):,} times" if first else ""
    what = f"the judge prefers nothing: {flat:,} of {number:,} pairs have a probability of one half{share}"
    return Finding("worthless", what, OTHER_JUDGE)


def _one_sided(judged: Sequence[Judged]) -> list[Finding]:
    """Answers that do not turn around when the two responses are swapped."""
    pairs = _log_odds(judged)
    same = sum((forward > 0) == (backward < 0) for forward, backward in pairs)
    found = swap_correlation(judged)
    strength = 0.0 if found is None else -found
    is_many = len(pairs) >= MIN_PAIRS
    is_chance = is_many and _p_value(strength, len(pairs)) > MAX_P_VALUE
    if not is_chance and not (same == 0 and len(pairs) >= MIN_ONE_SIDED and strength < 0.5):
        return []
    shown = "not determined" if found is None else f"{found:+.2f}"
    what = (
        f"its answers do not turn around with the order: both orders name the same response for {same:,} of "
        f"{len(pairs):,} questions, their log-odds correlate by {shown} (−1: the responses alone decide)"
    )
    return [Finding("doubtful", what, OTHER_JUDGE)]


def _p_value(strength: float, number: int) -> float:
    """Of a correlation at least so strong if the answers in one order told nothing of those in the other."""
    return 1 - NormalDist().cdf(math.atanh(min(0.999999, max(-0.999999, strength))) * math.sqrt(number - 3))


def _log_odds(judged: Sequence[Judged]) -> list[tuple[float, float]]:
    """Log-odds for the response shown first, in both orders, of every question that has both."""
    opinions = [reply.opinion for item in judged for reply in item.replies]
    return [(o.forward, o.backward) for o in opinions if o.forward is not None and o.backward is not None]


def _steps(draft: Draft) -> list[tuple[str, str]]:
    """(text before, revision) of each round that has a revision."""
    texts = draft.texts
    return [
        (texts[n], each.revision.text) for n, each in enumerate(draft.rounds) if each.revision is not None
    ]


def _by_prompt(drafts: Sequence[Draft], text: Callable[[Draft], str | None]) -> dict[str, str]:
    """One text of each prompt."""
    found = {}
    for draft in drafts:
        own = text(draft)
        if own is not None:
            found[prompt_key(draft.asked.prompt)] = own
    return found


def _last_revision(draft: Draft) -> str | None:
    kept = [each.revision.text for each in draft.rounds if each.revision is not None]
    return kept[-1] if kept else None


def _first_critique(draft: Draft) -> str | None:
    return next((each.critique.text for each in draft.rounds if each.critique is not None), None)


def _the_same(name: str, texts: dict[str, str], *, worthless: bool) -> list[Finding]:
    """One text for nearly all prompts."""
    if len(texts) < MIN_TEXTS:
        return []
    [(text, number)] = Counter(texts.values()).most_common(1)
    if number < SAME_SHARE * len(texts):
        return []
    shown = sanitize_line(text if len(text) <= 60 else f"{text[:57]}...")
    what = f"the {name} is the same for {number:,} of {len(texts):,} prompts ({shown})"
    return [Finding("worthless" if worthless else "note", what, OTHER_REVISER)]

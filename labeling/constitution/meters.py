"""What can be measured of responses and revisions by their words alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BOILERPLATE_WORDS = 5
"""Length of the phrases that are looked for in all revisions."""
BOILERPLATE_SHARE, BOILERPLATE_TEXTS = 0.02, 3
"""A phrase is boilerplate if it stands in so many of the texts: this share of them, and this number."""

EVASIONS = (
    "i can't",
    "i cannot",
    "i can not",
    "i won't",
    "i will not",
    "i'm not able to",
    "i am not able to",
    "i'm unable to",
    "i am unable to",
    "i'm sorry, but",
    "i am sorry, but",
    "i must decline",
    "as an ai",
    "as a language model",
)
"""Beginnings of refusals in English."""


MOST_WORDS = 2000
"""Of a text that are compared with another's, one by one."""


@dataclass(frozen=True)
class Change:
    """How a revision differs from the text before it."""

    words_before: int
    words_after: int
    edit_distance: float
    """Words put in, left out or exchanged (Levenshtein), over the words of the longer text: 0 to 1.

    Of the first `MOST_WORDS` words alone: its cost grows with the square.
    """
    novelty: float
    """Share of the revision's pairs of neighbouring words that the text before did not have."""


def change(before: str, after: str) -> Change:
    """Compares two texts word by word, white space apart."""
    old, new = before.split(), after.split()
    compared = old[:MOST_WORDS], new[:MOST_WORDS]
    longest = max(map(len, compared))
    pairs_before = set(pairwise(old))
    pairs_after = list(pairwise(new))
    fresh = sum(pair not in pairs_before for pair in pairs_after)
    return Change(
        words_before=len(old),
        words_after=len(new),
        edit_distance=edit_distance(*compared) / longest if longest else 0.0,
        novelty=fresh / len(pairs_after) if pairs_after else 0.0,
    )


def edit_distance(old: Sequence[str], new: Sequence[str]) -> int:
    """Levenshtein's distance, a row of the table at a time."""
    known = {word: number for number, word in enumerate(dict.fromkeys([*old, *new]))}
    new_N = np.array([known[word] for word in new], dtype=np.int64)
    steps_N = np.arange(len(new) + 1)
    row = steps_N.copy()
    for number, word in enumerate(old, start=1):
        best = np.concatenate([[number], np.minimum(row[1:] + 1, row[:-1] + (new_N != known[word]))])
        row = np.minimum.accumulate(best - steps_N) + steps_N  # a word put in costs 1 a place
    return int(row[-1])


def evades(text: str, phrases: Sequence[str] = ()) -> bool:
    """Whether a text has one of the phrases, by default those of common refusals; letter case is ignored."""
    plain = " ".join(text.lower().replace("’", "'").split())
    return any(phrase.lower() in plain for phrase in phrases or EVASIONS)


@dataclass(frozen=True)
class Boilerplate:
    """Phrases that return from text to text."""

    share: float
    """Texts that hold such a phrase, over all texts."""
    phrases: list[tuple[str, int]]
    """The most frequent ones, and the number of texts that hold each."""


def boilerplate(texts: Iterable[str], *, num_phrases: int = 10) -> Boilerplate:
    """Phrases of `BOILERPLATE_WORDS` words that stand in many of the texts."""
    found = [_phrases(text) for text in texts]
    if not found:
        return Boilerplate(0.0, [])
    counts = Counter(phrase for phrases in found for phrase in phrases)
    least = max(BOILERPLATE_TEXTS, BOILERPLATE_SHARE * len(found))
    often = {phrase: n for phrase, n in counts.items() if n >= least}
    share = sum(not phrases.isdisjoint(often) for phrases in found) / len(found)
    top = sorted(often.items(), key=lambda each: (-each[1], each[0]))[:num_phrases]
    return Boilerplate(share, [(" ".join(phrase), n) for phrase, n in top])


def _phrases(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + BOILERPLATE_WORDS]) for i in range(len(words) - BOILERPLATE_WORDS + 1)}

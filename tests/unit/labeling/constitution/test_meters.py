from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.constitution.meters import MOST_WORDS, boilerplate, change, edit_distance, evades

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


def brute_force(old: tuple[str, ...], new: tuple[str, ...]) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        exchanged = distance(i - 1, j - 1) + (old[i - 1] != new[j - 1])
        return min(exchanged, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(old), len(new))


@given(WORDS, WORDS)
def test_the_edit_distance_is_the_least_number_of_edits(old: list[str], new: list[str]) -> None:
    assert edit_distance(old, new) == brute_force(tuple(old), tuple(new))


def test_a_change_is_counted_in_words() -> None:
    found = change("the cat sat", "the big cat sat")
    assert (found.words_before, found.words_after) == (3, 4)
    assert found.edit_distance == pytest.approx(1 / 4)
    assert found.novelty == pytest.approx(2 / 3)  # "the big" and "big cat" are new
    assert change("same words", "same words") == change("same words", "same  words")
    assert change("", "").edit_distance == 0


@pytest.mark.parametrize(
    ("text", "phrases", "expected"),
    [
        ("I’m sorry, but I can’t help with that.", (), True),
        ("As an AI, I have no opinion.", (), True),
        ("You can kill it with `kill -9`.", (), False),
        ("Please ask somebody else about that.", ("ask somebody else",), True),
        ("I cannot say.", ("ask somebody else",), False),
    ],
)
def test_an_evasive_text_is_known_by_its_phrases(text: str, phrases: tuple[str, ...], expected: bool) -> None:
    assert evades(text, phrases) == expected


def test_boilerplate_is_what_returns_from_text_to_text() -> None:
    stock = [f"I want to be clear that {n} is fine." for n in ("this", "that", "it")]
    found = boilerplate([*stock, "A text that nobody else has ever written down here."])
    assert found.share == 0.75
    assert ("i want to be clear", 3) in found.phrases
    assert boilerplate(["one two three four five six"] * 2).share == 0  # twice is not often
    assert boilerplate([]).share == 0


def test_what_comes_after_the_words_that_are_compared_changes_no_distance() -> None:
    same = "word " * MOST_WORDS
    assert change(same + "one two three", same + "four").edit_distance == 0
    assert change("other " + same, same).edit_distance == pytest.approx(1 / MOST_WORDS)

"""Hostile text is shown and does nothing."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.sanitize import sanitize, sanitize_line
from labeling.store.judgements import Judgement, competition_ranks

ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
BIDI = {"\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"}


@given(ANY)
def test_nothing_that_a_terminal_obeys_gets_through(text: str) -> None:
    shown = sanitize(text)
    for character in shown:
        assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.category(character) != "Cf" or character in "\u200c\u200d"
    assert not BIDI & set(shown)
    assert shown.encode().decode() == shown
    assert "\n" not in sanitize_line(text)


@given(ANY)
def test_what_is_safe_stays_as_it_is(text: str) -> None:
    assert sanitize(sanitize(text)) == sanitize(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ü, 漢字, 👩‍👩‍👧, שלום\nsecond line", None),
        ("\x1b[2J\x1b]0;title\x07", "␛[2J␛]0;title␇"),
        ("a\0b\x7f\x9b31m", "a␀b␡⟨U+009B⟩31m"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo␍three\nfour"),
        ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
        ("half \ud800 pair", "half ⟨U+D800⟩ pair"),
        ("\tx", "    x"),
        ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + "⟨U+0301⟩" * 2),
    ],
)
def test_what_is_shown_instead(text: str, shown: str | None) -> None:
    assert sanitize(text) == (text if shown is None else shown)


def test_a_megabyte_is_shown_at_once() -> None:
    assert len(sanitize("\x1b" * 1_000_000)) == 1_000_000


@given(st.lists(st.one_of(st.integers(1, 9), st.just("F")), min_size=2, max_size=9), st.randoms())
def test_a_judgement_finds_back_from_the_order_shown(ranks: list[int | str], rng: object) -> None:
    judgement = Judgement(tuple(ranks), tuple(range(len(ranks))))  # type: ignore[arg-type]
    shown = list(range(len(ranks)))
    rng.shuffle(shown)  # type: ignore[attr-defined]
    assert judgement.in_shown_order(shown).in_own_order(shown) == judgement


def test_ranks_take_the_form_in_which_better_ones_are_counted() -> None:
    assert competition_ranks((4, 2, "F", 2, 9)) == (3, 1, "F", 1, 4)

"""Text from models and from people nobody knows, made safe to print on a terminal and to show.

A terminal obeys escape sequences, and both terminals and browsers obey bidirectional controls, by which a
text can show its letters in another order than the program that wrote it believes. None of them gets through:
each is shown as a sign for itself.
"""

import unicodedata

from rlhf.errors import UserError

MAX_MARKS = 4
"""Combining marks in a row that are kept; no language needs more, and a pile of them covers other lines."""
MAX_NAME_CHARACTERS = 64
TAB = "    "

_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
_BREAKS = {0x85: "\n", 0x2028: "\n", 0x2029: "\n"}
_INVISIBLE = {0x200B, 0x2060, 0xFEFF, 0x00AD, 0x180E, 0x3164, 0xFFA0}
_JOINERS = {0x200C, 0x200D}
"""They make emoji and Indic or Persian words what they are, and hide nothing."""


def sanitize(text: str) -> str:
    """`text` with every character that could do something shown instead as what it is.

    Lines still end at "\\n"; "\\r\\n", NEL and Unicode's separators end them too. Tabs become spaces, control
    characters Unicode's pictures of them (ESC is ␛, NUL ␀), and all other invisible ones, half surrogate
    pairs and marks beyond `MAX_MARKS` in a row their number, ⟨U+202E⟩. The result holds no character of the
    categories Cc (but "\\n") and Cs, and of Cf only the joiners.
    """
    if text.isascii() and text.isprintable():
        return text
    parts: list[str] = []
    marks = 0
    for character in text.replace("\r\n", "\n"):
        marks = marks + 1 if unicodedata.combining(character) else 0
        parts.append(_shown(character) if marks <= MAX_MARKS else _number(character))
    return "".join(parts)


def sanitize_line(text: str) -> str:
    """As `sanitize`, on a single line: a line break is shown as ⏎."""
    return sanitize(text).replace("\n", "⏎")


def labeler_name(name: str) -> str:
    """`name` in Unicode's composed form, without white space around it.

    Raises:
        UserError: it is empty, too long, or has a character that cannot be seen.
    """
    composed = unicodedata.normalize("NFC", name).strip()
    fix = f"Give a name of 1 to {MAX_NAME_CHARACTERS} visible characters."
    if not composed or len(composed) > MAX_NAME_CHARACTERS:
        raise UserError(f"a labeler's name has {len(composed)} characters", fix=fix)
    if sanitize(composed) != composed or "\n" in composed or not composed.isprintable():
        raise UserError(f"the name {sanitize_line(composed)} has characters that cannot be seen", fix=fix)
    return composed


def _shown(character: str) -> str:
    code = ord(character)
    if character == "\n" or 0x20 <= code < 0x7F:
        return character
    if character == "\t":
        return TAB
    if code in _BREAKS:
        return _BREAKS[code]
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code in _JOINERS:
        return character
    if code in _BIDI or code in _INVISIBLE or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn"):
        return _number(character)
    return character


def _number(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"

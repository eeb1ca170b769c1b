"""The keys of the labeler's screen: one table for what they do, the help and the docs."""

from dataclasses import dataclass

from textual.binding import Binding

from labeling.store.project import MAX_COMPLETIONS
from labeling.store.rules import LabelingRules


@dataclass(frozen=True)
class Key:
    """Keys with one meaning."""

    keys: str
    """As Textual names them, separated by commas."""
    action: str
    shown: str
    """As people name them."""
    meaning: str


KEYS = (
    Key("1", "digit(1)", "1 … 9", "rank the answer in focus; 1 is best"),
    Key("f", "fail", "f", "the answer has failed"),
    Key("0", "digit(0)", "0", "take its rank and its score away"),
    Key("backspace,delete", "clear", "", ""),
    Key(
        "g",
        "score",
        "g 1 … 7",
        "its quality score, if the project has them; right after a rank, that answer's",
    ),
    Key("right,tab,l,n", "answer(1)", "→ or Tab", "next answer"),
    Key("left,shift+tab,h", "answer(-1)", "← or Shift+Tab", "the answer before"),
    Key("down,j", "rows(1)", "↓ ↑", "scroll the answers by a row"),
    Key("up,k", "rows(-1)", "", ""),
    Key("space,pagedown", "page(1)", "Space, PgDn, PgUp", "scroll them by a page"),
    Key("b,pageup", "page(-1)", "", ""),
    Key("home", "end(0)", "Home, End", "first, last answer"),
    Key("end", "end(-1)", "", ""),
    Key("p", "prompt", "p", "the whole prompt, and back"),
    Key("enter", "submit", "Enter", "submit, and go to the next item"),
    Key("u", "undo", "u", "undo the last key; with none left, the last submission or skip"),
    Key("s", "skip", "s", "skip the item, with a reason"),
    Key("x", "flag", "x", "flag the item: something is wrong with it"),
    Key("c", "note", "c", "a note (comment) on the item"),
    Key("escape", "escape", "", ""),
    Key("question_mark", "help", "?", "instructions and keys"),
    Key("q", "leave", "q", "quit; everything entered is kept"),
)
DIGITS = tuple(str(n) for n in range(1, MAX_COMPLETIONS + 1))


def bindings() -> list[Binding]:
    """Every key with its action, as Textual takes them.

    With priority, so that a key has done its work before the next is looked at: whatever follows the key that
    opens a question, however fast it is typed, is part of the answer.
    """
    digits = [(digit, f"digit({digit})") for digit in DIGITS]
    others = [(_both_cases(key.keys), key.action) for key in KEYS if key.action != "digit(1)"]
    return [Binding(keys, f"key({_call(action)})", priority=True) for keys, action in digits + others]


def _both_cases(keys: str) -> str:
    """With the capital of every letter: where Caps Lock is on, a letter must not be lost among the digits."""
    names = keys.split(",")
    return ",".join([*names, *(name.upper() for name in names if len(name) == 1 and name.isalpha())])


def _call(action: str) -> str:
    """An action and its argument as the arguments of `key`."""
    name, _, argument = action.rstrip(")").partition("(")
    return f"'{name}', {argument}" if argument else f"'{name}'"


def key_help(rules: LabelingRules) -> str:
    """The keys of a project with these rules, as Markdown."""
    rows = [key for key in KEYS if key.shown and (rules.quality_scores or key.action != "score")]
    lines = [f"- `{key.shown}` {key.meaning}" for key in rows]
    ties = "Equal ranks tie." if rules.ties else "No ties here: a rank that is taken is exchanged."
    return "\n".join(["# Keys", "", *lines, "", ties])

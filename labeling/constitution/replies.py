"""What of a reply is the answer: reasoning before it is none, nor a refusal, nor what was cut off.

Models that reason put their train of thought before the answer, between marks that differ from family to
family, and whose first one a chat template may have written into the prompt already. Whoever takes the whole
reply for the answer trains on trains of thought.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Problem = Literal["", "cut_off", "refused"]

_SURE = r"(?:\w+[:_])?(?:think|thinking|thought|thoughts|reasoning)"
"""Tags that stand for nothing else, wherever they are."""
_AT_FIRST = r"(?:reason|analysis|reflection|scratchpad)"
"""Tags that also stand in answers; at a reply's beginning they are reasoning."""
_OPENING = re.compile(
    rf"<{_SURE}\s*>|\[THINK\]|◁think▷|<unused94>|<\|(?:begin_of_thought|START_THINKING|thinking|think)\|>",
    re.I,
)
_ENDING = re.compile(
    rf"</{_SURE}\s*>|\[/THINK\]|◁/think▷|<unused95>|<\|(?:end_of_thought|END_THINKING|/thinking|/think)\|>",
    re.I,
)
_FIRST_BLOCK = re.compile(rf"\s*<({_AT_FIRST})\s*>(?:.*?</\1\s*>|(?P<open>.*)\Z)", re.I | re.S)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)
"""A mark that a text quotes as code is spoken of, and is none."""
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+).*?<\|message\|>", re.S)
"""Harmony, the format of gpt-oss: every message names its channel, and the answer's is `final`."""
_BARE_CHANNEL = re.compile(r"\A(?:analysis|commentary)(?=[A-Z\"'*\d]).*?assistantfinal", re.S)
"""The same where a server has left the special tokens out."""
_BARE_BEGINNING = re.compile(r"\A(?:analysis|commentary)(?=[A-Z\"'*\d])")
_WRAPPERS = re.compile(
    r"<answer>\s*(?P<answer>.*?)\s*</answer>|<\|begin_of_solution\|>(?P<solution>.*?)<\|end_of_solution\|>"
    r"|<\|START_RESPONSE\|>(?P<response>.*?)<\|END_RESPONSE\|>",
    re.S,
)
"""What some of these models put around the answer, if they reasoned before it."""
_LEFTOVERS = re.compile(r"(?:<\|(?:end|return|im_end|eot_id)\|>\s*)+\Z")
_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "incomplete"})
_REFUSED = frozenset({"content_filter", "safety", "refusal", "recitation", "prohibited_content", "blocklist"})

_CANNOT = r"(?:can't|cannot|can not|won't|will not|am unable to|'m unable to|am not able to|'m not able to)"
_HELP = (
    r"(?:help|assist|comply|do|fulfil|fulfill|provide|continue|engage|answer|create|write|generate|revise)"
)
REFUSALS = (
    rf"(?:i'm|i am)? ?(?:very |really )?sorry,? (?:but )?i ?{_CANNOT}",
    rf"i ?{_CANNOT} {_HELP}\b",
    r"i must (?:decline|refuse)",
    rf"as an? (?:ai|language model|ai language model|ai assistant)\b[^.]*\bi ?{_CANNOT}",
)
"""How texts begin that are nothing but a refusal, in English: regular expressions, letter case apart."""
_GOES_ON = re.compile(r"\b(?:but|however|instead|i can)\b", re.I)
"""After a refusal: the answer gives something all the same."""
MAX_REFUSAL_WORDS = 40
"""A longer text begins with such words and goes on to say something."""


@dataclass(frozen=True)
class Said:
    """A reply without its reasoning."""

    text: str
    problem: Problem = ""
    reasoned: bool = False
    """Whether there was reasoning before it."""


def without_reasoning(text: str) -> Said:
    """The answer in a text; reasoning that does not end is an answer that never came: cut off."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        return _from_channels(text, channels)
    if _BARE_BEGINNING.match(text):
        rest, found = _BARE_CHANNEL.subn("", text)
        return Said(rest.strip(), reasoned=True) if found else Said("", "cut_off", reasoned=True)
    answer, reasoned = _after_blocks(text)
    if answer is None:
        return Said("", "cut_off", reasoned=True)
    rest = answer.strip()
    if reasoned:
        rest = _LEFTOVERS.sub("", rest).strip()
        wrapped = _WRAPPERS.fullmatch(rest)
        if wrapped is not None:
            rest = next(part for part in wrapped.groups() if part is not None).strip()
    return Said(rest, reasoned=reasoned)


def said_in(choice: dict[str, Any]) -> Said:
    """The answer in one choice of a chat completion, in whichever field the endpoint puts what.

    Raises:
        LookupError, TypeError, AttributeError: it is not in the shape of one.
    """
    message = choice["message"]
    text, refusal, thoughts = _parts(message.get("content"))
    thoughts = thoughts or any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
    said = without_reasoning(_whole_characters(text))
    reason = str(choice.get("finish_reason") or "").lower()
    problem = said.problem
    if message.get("refusal") or refusal or reason in _REFUSED:
        problem = "refused"
    elif reason in _CUT_OFF:
        problem = "cut_off"
    return Said(said.text, problem, said.reasoned or bool(thoughts))


def is_refusal(text: str, patterns: Sequence[str]) -> bool:
    """Whether a text is nothing but a refusal: short, begins as a pattern says, and then offers nothing."""
    plain = " ".join(text.replace("’", "'").split())
    if len(plain.split()) > MAX_REFUSAL_WORDS:
        return False
    found = (re.match(rf"\W*(?:{pattern})", plain, re.I) for pattern in patterns)
    return any(match and not _GOES_ON.search(plain, match.end()) for match in found)


def _from_channels(text: str, channels: Sequence[re.Match[str]]) -> Said:
    """The last message of the channel `final`."""
    final = [match for match in channels if match[1] == "final"]
    if not final:
        return Said("", "cut_off", reasoned=True)
    answer = text[final[-1].end() :].partition("<|start|>")[0]
    return Said(_LEFTOVERS.sub("", answer.strip()).strip(), reasoned=True)


def _after_blocks(text: str) -> tuple[str | None, bool]:
    """The text without blocks of reasoning, and whether it had any; no text where one does not end."""
    reasoned = False
    while first := _FIRST_BLOCK.match(text):
        if first["open"] is not None:
            return None, True
        text, reasoned = text[first.end() :], True
    while True:
        quoted = [] if _OPENING.match(text.lstrip()) else _quoted(text)
        openings, endings = _outside(_OPENING, text, quoted), _outside(_ENDING, text, quoted)
        if not openings and not endings:
            return text, reasoned
        if not endings:
            return None, True
        ending = endings[0]
        before = [match for match in openings if match.start() < ending.start()]
        start = before[0].start() if before else 0  # without an opening mark, it stands in the prompt
        text, reasoned = text[:start] + text[ending.end() :], True


def _quoted(text: str) -> list[tuple[int, int]]:
    """Where code stands that speaks of marks: not what a train of thought begins, and the answer ends."""
    found = []
    for code in _CODE.finditer(text):
        num_openings, num_endings = (len(mark.findall(code[0])) for mark in (_OPENING, _ENDING))
        is_mention = _ENDING.fullmatch(code[0].strip("` ")) is not None
        if num_endings in (0, num_openings) or is_mention:
            found.append(code.span())
    return found


def _outside(pattern: re.Pattern[str], text: str, quoted: Sequence[tuple[int, int]]) -> list[re.Match[str]]:
    found = pattern.finditer(text)
    return [m for m in found if not any(start <= m.start() < end for start, end in quoted)]


def _parts(content: Any) -> tuple[str, str, bool]:
    """Text, refusal, and whether there were thoughts, of content that may be text or a list of parts."""
    if content is None:
        return "", "", False
    if isinstance(content, str):
        return content, "", False
    texts, refusals, thoughts = [], [], False
    for part in content:
        kind = str(part.get("type", "text"))
        if kind in ("text", "output_text"):
            texts.append(part["text"])
        elif kind == "refusal":
            refusals.append(str(part["refusal"]))
        else:
            thoughts = True
    return "".join(texts), "".join(refusals), thoughts


def _whole_characters(text: str) -> str:
    """Half a surrogate pair is no character, and no file takes it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_AROUND = " \t\n()[]{}*_`'\".:,;!?#ĠĊ▁"
"""May stand around an option; the last three are spaces in a tokenizer's own spelling."""
_VERBS = frozenset({"is", "was", "has", "does", "would", "seems", "appears", "because", "and", "or", "as"})
_VERDICT = r"(?:answer|choice|option|response|verdict|better|best|winner)[\w\s-]{{0,20}}?(?:is|:|=)\W*({})\b"


def vote_in(said: Said, options: Sequence[str]) -> str | None:
    """The only option that a reply names; a model may say `B`, `(B)` or `It is B.`, and not `A or B`.

    Of a reply that was cut off the first word counts, or what it calls the answer: the rest may have said
    otherwise, or was a train of thought.
    """
    if said.problem == "refused" or not said.text:
        return None
    words = said.text.split()
    if said.problem == "cut_off":
        first = words[0].strip(_AROUND)
        if first in options and not _is_article(words, 0):
            return first
        found = set(re.findall(_VERDICT.format("|".join(map(re.escape, options))), said.text))
        return found.pop() if len(found) == 1 else None
    named = {word.strip(_AROUND) for n, word in enumerate(words) if not _is_article(words, n)} & set(options)
    return named.pop() if len(named) == 1 else None


def _is_article(words: Sequence[str], number: int) -> bool:
    """Whether a word is the English article: `A user asks …` names no option."""
    following = words[number + 1] if number + 1 < len(words) else ""
    return words[number].strip("*_\"'(") == "A" and following[:1].islower() and following not in _VERBS

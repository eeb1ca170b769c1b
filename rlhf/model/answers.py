"""What a chat template writes of an answer, compared with what the answer says.

A template is a program: it may take the thoughts out of an answer, keep the last of several parts, or put an
empty thought in front. A model learns what is written. So the words of each answer are looked for in what the
template writes, and nothing may stand beside them but what it writes around every answer of this form.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from rlhf.data.records import Message, Turns
from rlhf.errors import UserError
from rlhf.model.rendering import PROBE, THOUGHTS, WHERE, form_of, render, render_as_is, template_text

LEFT_OUT = "answer that the chat template changes or leaves out in part"
ADDED = "answer to which the chat template adds words"

_TAG = re.compile(r"(</?[A-Za-z][\w:-]*>)")
_THINKS = re.compile(r"</?(think|thinking|thoughts?|reason|reasoning|reflection|scratchpad|analysis)>", re.I)
_THOUGHT_PROBE = "thought 7261"

_frames: "WeakKeyDictionary[Any, dict[Any, _Frame]]" = WeakKeyDictionary()
"""Tokenizer → form of conversation → what its template writes around an answer."""
_sound: "WeakKeyDictionary[Any, set[Any]]" = WeakKeyDictionary()
"""Tokenizer → forms of conversation whose answers are known to begin and end well."""


class AnswerChangedError(UserError):
    """The chat template writes another answer than the record holds; `what` is the reason to count."""


@dataclass(frozen=True)
class _Frame:
    """What stands before an answer's thoughts, between them and its content, and behind, up to its end.

    Without thoughts, `between` is empty.
    """

    before: str
    between: str
    after: str


def render_answer(tokenizer: Any, turns: Turns, *, ends: Sequence[int], exact: bool = True) -> str:
    """What the template writes for the last of `turns` after the header with which an open prompt ends.

    `ends` are the ids that end a response. Not `exact`, the answer may be another one than the turn's.

    Raises:
        UserError: as `render`; the template changes the prompt once it is answered, writes an answer's header
            only once the answer is there, or ends it with words.
        AnswerChangedError: the words of the answer are not all there, or others are.
    """
    opened = render(tokenizer, turns[:-1], open_answer=True)
    answered = render(tokenizer, turns, open_answer=False)
    if not answered.startswith(opened):
        pairs = enumerate(zip(opened, answered, strict=False))
        shared = next((place for place, (one, other) in pairs if one != other), 0)
        raise UserError(
            "it changes what stands before an answer once the answer is there: "
            f"{opened[shared:][:60]!r} becomes {answered[shared:][:60]!r}",
            where=WHERE,
            fix="Set `model.chat_template` to one whose generation prompt begins an answered turn.",
        )
    form = ("answer", template_text(tokenizer), tuple(ends), tuple(turn.role for turn in turns))
    known = _sound.setdefault(tokenizer, set())
    if form not in known:
        _check_borders(tokenizer, turns[:-1], opened, ends)
        known.add(form)
    if exact:
        _added(tokenizer, turns, opened, answered)
    return answered.removeprefix(opened)


def added_to_answer(tokenizer: Any, turns: Turns) -> str:
    """What the template writes in front of this answer without the row's saying it: an empty thought, say.

    Raises:
        UserError: as `render_answer`.
    """
    if turns[-1].others or not _frame(tokenizer, turns).before.strip():
        return ""
    opened = render_as_is(tokenizer, turns[:-1], open_answer=True)
    return _added(tokenizer, turns, opened, render_as_is(tokenizer, turns, open_answer=False))


def _added(tokenizer: Any, turns: Turns, opened: str, answered: str) -> str:
    """What stands in front of the answer's words.

    Raises:
        AnswerChangedError: they are not all there, or others are.
    """
    answer, written = turns[-1], answered.removeprefix(opened)
    if "tool_calls" in answer.others or "function_call" in answer.others:
        # Templates write calls before or after the words, each in its way: `render` has looked at them.
        if not _holds(written, _words(answer)):
            raise AnswerChangedError(LEFT_OUT)
        return ""
    for fresh in (False, True):
        frame = _frame(tokenizer, turns, fresh=fresh)
        for before in _beginnings(frame, answer):
            if _is_framed(written, answer, replace(frame, before=before), opened):
                return before
    raise AnswerChangedError(ADDED if _holds(written, _words(answer)) else LEFT_OUT)


def _beginnings(frame: _Frame, answer: Message) -> list[str]:
    """What may stand before an answer: nothing, what stands before others, the tag that its thoughts lack.

    An empty thought does not stand before thoughts, which it would make part of what is said.
    """
    found = [""]
    thinks = _THINKS.search(answer.content)
    if thinks is None or _thought(answer):
        found.insert(0, frame.before.strip())
    elif thinks.group().startswith("</"):
        found.append(thinks.group().replace("</", "<"))
    return found


def _is_framed(written: str, answer: Message, frame: _Frame, opened: str) -> bool:
    """Whether `written` is the answer's words in the frame and nothing else, white space aside."""
    thought = _thought(answer)
    words = [frame.before, *_pieces(thought)]
    words += [frame.between] if thought else []
    content = _pieces(answer.content)
    if content and not thought and _TAG.fullmatch(content[0]) and opened.rstrip().endswith(content[0]):
        content = content[1:]  # the prompt ends with the tag that begins the thoughts
    words += [*content, frame.after]
    place = 0
    for word in words:
        rest = written[place:]
        place += len(rest) - len(rest.lstrip())
        if not written.startswith(word.strip(), place):
            return False
        place += len(word.strip())
    return not written[place:].strip()


def _holds(written: str, words: Sequence[str]) -> bool:
    """Whether the words are there in their order."""
    place = 0
    for word in words:
        found = written.find(word, place)
        if found < 0:
            return False
        place = found + len(word)
    return True


def _words(answer: Message) -> list[str]:
    return [*_pieces(_thought(answer)), *_pieces(answer.content)]


def _pieces(text: str) -> list[str]:
    """The text parted at tags, around which templates change white space."""
    return [piece.strip() for piece in _TAG.split(text) if piece.strip()]


def _thought(answer: Message) -> str:
    """What the answer's own key says that it thought."""
    return "\n".join(str(answer.others[key]) for key in THOUGHTS if key in answer.others)


def _frame(tokenizer: Any, turns: Turns, *, fresh: bool = False) -> _Frame:
    """What the template writes around an answer of this form; `fresh`: in this very conversation."""
    form = (template_text(tokenizer), tuple(form_of(turn) for turn in turns))
    known = _frames.setdefault(tokenizer, {})
    if fresh or form not in known:
        known[form] = _probed(tokenizer, turns)
    return known[form]


def _probed(tokenizer: Any, turns: Turns) -> _Frame:
    answer = turns[-1]
    others = {key: _THOUGHT_PROBE if key in THOUGHTS else value for key, value in answer.others.items()}
    probe = Message("assistant", PROBE if answer.content else "").with_others(others)
    opened = render_as_is(tokenizer, turns[:-1], open_answer=True)
    written = render_as_is(tokenizer, (*turns[:-1], probe), open_answer=False).removeprefix(opened)
    before, between = "", ""
    if _thought(answer):
        before, _, written = written.partition(_THOUGHT_PROBE)
    if answer.content:
        between, _, written = written.partition(PROBE)
    return _Frame(before, between, written) if _thought(answer) else _Frame(between, "", written)


def _check_borders(tokenizer: Any, prompt: Turns, opened: str, ends: Sequence[int]) -> None:
    """Check that what stands around an answer is no part of what the model has to say.

    Raises:
        UserError: it is.
    """
    answered = render_as_is(tokenizer, (*prompt, Message("assistant", PROBE)), open_answer=False)
    before, _, after = answered.removeprefix(opened).partition(PROBE)
    if before.strip() and opened == render_as_is(tokenizer, prompt, open_answer=False):
        raise UserError(
            f"it writes {before.strip()!r} in front of an answer that is there, and not in front of one that "
            "is yet to come: the model would have to say it",
            where=WHERE,
            fix="Let it write the header of the assistant's turn where `add_generation_prompt` is true.",
        )
    for end in tokenizer.convert_ids_to_tokens(list(ends)):
        after = after.partition(end)[0]
    for token in tokenizer.added_tokens_decoder.values():
        after = after.replace(token.content, "") if token.content.strip() else after
    if after.strip():
        raise UserError(
            f"it ends an answer with {after.strip()!r}, which is no token of this tokenizer but text: the "
            "model would learn to say it",
            where=WHERE,
            fix="Let it end an answer with `{{ eos_token }}`, or take the template of this model.",
        )

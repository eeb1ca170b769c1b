"""Conversations → text by the tokenizer's chat template, with a check that it renders what messages say.

The only caller of `apply_chat_template`. A template passes over what it does not know: a role, a key, a whole
message. So each form of conversation (its roles and keys) is rendered again with one thing changed at a time;
what changes nothing in the result is not in the prompt, and is refused by name.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from typing import Any
from weakref import WeakKeyDictionary

from rlhf.data.messages import TOOLS
from rlhf.data.records import Message, Turns
from rlhf.errors import UserError
from rlhf.runs.date import given_date, run_date

_MAY_VANISH = ("tool_call_id", "id")
"""Keys that tie messages together and say nothing of their own."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys that templates render of the newest answer only, and leave out of earlier ones."""
_PROBE = "probe 7261"
_WHERE = "chat template"

_DAY_MACRO = (
    "{%- macro strftime_now(format) -%}{%- set ns = namespace(text=format) -%}"
    "{%- for directive, value in directives_of_run.items() -%}"
    "{%- set ns.text = ns.text | replace(directive, value) -%}{%- endfor -%}"
    "{{- ns.text -}}{%- endmacro -%}"
)
"""Stands in front of a template: its `strftime_now` then writes the day of the run. A template is given plain
data alone, so no function of ours could take that place."""
_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", "-j", *"aAbBcdeDfFGHIjmMpSTuUVwWxXyYzZ")

_checked: "WeakKeyDictionary[Any, set[Any]]" = WeakKeyDictionary()
"""Tokenizer → forms of conversation that its template is known to render."""


@dataclass(frozen=True)
class _Change:
    """A conversation that says something else, and what it is that differs."""

    turns: Turns
    what: str
    number: int
    key: str


def render(tokenizer: Any, turns: Turns, *, open_answer: bool) -> str:
    """The conversation as the chat template writes it; `open_answer` adds the header of the next answer.

    Raises:
        UserError: no template, one that refuses the conversation, or that leaves out what a message says.
    """
    text = _render(tokenizer, turns, open_answer=open_answer)
    _check(tokenizer, turns, text, open_answer=open_answer)
    return text


def renders_whole(tokenizer: Any, turns: Turns) -> bool:
    """Whether each content and each thought is in an open prompt word for word, white space around it aside.

    Templates leave out the thoughts of earlier answers, and some of them trim or quote.
    """
    text = _render(tokenizer, turns, open_answer=True)
    said = [turn.content for turn in turns]
    said += [str(turn.others[key]) for turn in turns for key in _THOUGHTS if key in turn.others]
    return all(each.strip() in text for each in said)


def render_answer(tokenizer: Any, turns: Turns, *, ends: Sequence[int]) -> str:
    """What the template writes for the last of `turns` after the header with which an open prompt ends.

    `ends` are the ids that end a response.

    Raises:
        UserError: as `render`; the template changes the prompt once it is answered, writes an answer's header
            only once the answer is there, or ends it with words.
    """
    opened = render(tokenizer, turns[:-1], open_answer=True)
    answered = render(tokenizer, turns, open_answer=False)
    if not answered.startswith(opened):
        raise UserError(
            "it changes what stands before an answer once the answer is there",
            where=_WHERE,
            fix="Set `model.chat_template` to one whose generation prompt begins an answered turn.",
        )
    form = ("answer", template_text(tokenizer), tuple(ends), tuple(turn.role for turn in turns))
    known = _checked.setdefault(tokenizer, set())
    if form not in known:
        _check_borders(tokenizer, turns[:-1], opened, ends)
        known.add(form)
    return answered.removeprefix(opened)


def _check_borders(tokenizer: Any, prompt: Turns, opened: str, ends: Sequence[int]) -> None:
    """Check that what stands around an answer is no part of what the model has to say.

    Raises:
        UserError: it is.
    """
    answered = _render(tokenizer, (*prompt, Message("assistant", _PROBE)), open_answer=False)
    before, _, after = answered.removeprefix(opened).partition(_PROBE)
    if before.strip() and opened == _render(tokenizer, prompt, open_answer=False):
        raise UserError(
            f"it writes {before.strip()!r} in front of an answer that is there, and not in front of one that "
            "is yet to come: the model would have to say it",
            where=_WHERE,
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
            where=_WHERE,
            fix="Let it end an answer with `{{ eos_token }}`, or take the template of this model.",
        )


def of_record(error: UserError, where: str) -> UserError:
    """The error of a prompt or an answer, with the record that holds it."""
    return error.at(f"{where}, {error.where}" if error.where else where)


def template_text(tokenizer: Any) -> str:
    """The tokenizer's chat template, or all of them where it has several.

    Raises:
        UserError: it has none.
    """
    template = tokenizer.chat_template
    if template is None:
        raise UserError(
            "a prompt is a conversation, and the tokenizer has no chat template",
            where=_WHERE,
            fix="Set `model.chat_template`; or, for transcripts, `transcripts: text` in the source.",
        )
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template)


def marked(turns: Turns, marker: Callable[[Message, str], str]) -> Turns:
    """The conversation with every text in it, also inside of tool calls, as `marker` gives it back."""

    def walk(turn: Message, value: Any) -> Any:
        if isinstance(value, str):
            return marker(turn, value)
        if isinstance(value, dict):
            return {key: walk(turn, inner) for key, inner in value.items()}
        return [walk(turn, inner) for inner in value] if isinstance(value, list) else value

    return tuple(
        Message(marker(turn, turn.role), marker(turn, turn.content)).with_others(walk(turn, turn.others))
        for turn in turns
    )


def _render(tokenizer: Any, turns: Turns, *, open_answer: bool) -> str:
    """`render` without the check; tool calls' arguments as an object, or as text if the template wants it."""
    from jinja2 import TemplateError

    template_text(tokenizer)
    tools: list[Any] = [tool for turn in turns for tool in turn.others.get(TOOLS, [])]
    words: dict[str, Any] = {}
    if given_date() is not None:  # else the template's own default stands, which is a day, too
        words["date_string"] = run_date().strftime("%d %b %Y")
    problems: list[Exception] = []
    for arguments_as_text in (False, True):
        messages = [_for_template(turn, arguments_as_text) for turn in turns]
        try:
            template = tokenizer.get_chat_template(tools=tools or None)
            if "strftime_now" in template:
                template = _DAY_MACRO + template
                words["directives_of_run"] = _directives(run_date())
            text = tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=open_answer,
                **words,
            )
            return str(text)
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            problems.append(error)
    roles = ", ".join(turn.role for turn in turns)
    raise UserError(
        f"it refuses a conversation of {roles} ({problems[0]})",
        where=_WHERE,
        fix="Set `model.chat_template` to one that takes such conversations, or leave them out.",
    ) from problems[0]


def _directives(day: date) -> dict[str, str]:
    """What each directive of strftime writes at the beginning of `day`."""
    moment = datetime.combine(day, time())
    return {f"%{letter}": moment.strftime(f"%{letter}") for letter in _DIRECTIVES}


def _for_template(turn: Message, arguments_as_text: bool) -> dict[str, Any]:
    values = turn.to_json()
    values.pop(TOOLS, None)
    calls = values.get("tool_calls")
    if isinstance(calls, list):
        values["tool_calls"] = [_call(call, arguments_as_text) for call in calls]
    return values


def _call(call: Any, arguments_as_text: bool) -> Any:
    """A tool call whose arguments, which are JSON text or an object in data, are what is asked for."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": _call(call["function"], arguments_as_text)}
    arguments = call.get("arguments")
    if isinstance(arguments, str) and not arguments_as_text:
        try:
            return call | {"arguments": json.loads(arguments)}
        except ValueError:
            return call
    if isinstance(arguments, dict | list) and arguments_as_text:
        return call | {"arguments": json.dumps(arguments, ensure_ascii=False)}
    return call


def _check(tokenizer: Any, turns: Turns, text: str, *, open_answer: bool) -> None:
    """Check that each thing that the messages say is in the rendered text.

    Raises:
        UserError: one is not; the message is named by its number.
    """
    known = _checked.setdefault(tokenizer, set())
    form = (template_text(tokenizer), open_answer, tuple(_form(turn) for turn in turns))
    # A content that is not there word for word is looked at each time: its form does not tell why.
    if form in known and all(turn.content.strip() in text for turn in turns):
        return
    for change in (*_changes(turns), *_longer(turns, text)):
        if _says_the_same(tokenizer, change.turns, text, open_answer=open_answer):
            if change.key in _THOUGHTS and _renders_when_newest(tokenizer, turns, change):
                continue
            raise _not_rendered(turns, change)
    known.add(form)


def _form(turn: Message) -> Any:
    others = turn.others
    return turn.role, bool(turn.content), tuple(sorted(others)), len(others.get("tool_calls", ()))


def _says_the_same(tokenizer: Any, turns: Turns, text: str, *, open_answer: bool) -> bool:
    try:
        return _render(tokenizer, turns, open_answer=open_answer) == text
    except UserError:
        return False  # a template that refuses the change has looked at it


def _renders_when_newest(tokenizer: Any, turns: Turns, change: _Change) -> bool:
    """Whether the key of a message is rendered while it is the last one."""
    newest = turns[: change.number]
    try:
        text = _render(tokenizer, newest, open_answer=False)
    except UserError:
        return False
    return not _says_the_same(tokenizer, change.turns[: change.number], text, open_answer=False)


def _longer(turns: Turns, text: str) -> Iterator[_Change]:
    """The conversation with a longer end of each content that is not in the text word for word."""
    for number, turn in enumerate(turns, start=1):
        if turn.content.strip() not in text:
            longer = replace(turn, content=f"{turn.content} {_PROBE}")
            yield _Change((*turns[: number - 1], longer, *turns[number:]), "the end", number, "content")


def _changes(turns: Turns) -> Iterator[_Change]:
    """The conversation with one thing changed: each content, role, and other key of each message."""
    for number, turn in enumerate(turns, start=1):

        def changed(what: str, key: str, said: Message, number: int = number) -> _Change:
            return _Change((*turns[: number - 1], said, *turns[number:]), what, number, key)

        if turn.content.strip():
            yield changed("what it says", "content", replace(turn, content=_PROBE))
        # Whoever is told apart from the user is told apart. An answer is by its place or its tool calls.
        is_answer = turn.role == "assistant" and (len(turns) == 2 or "tool_calls" in turn.others)
        if turn.role != "user" and not is_answer:
            yield changed("its role", "role", replace(turn, role="user"))
        others = turn.others
        for key in others:
            if key in _MAY_VANISH:
                continue
            for what, value in _other_values(key, others[key]):
                yield changed(what, key, turn.with_others(others | {key: value}))


def _other_values(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is changed in a key's value, and the value then."""
    if key == "tool_calls" and isinstance(value, list):
        for number, call in enumerate(value):
            for part in ("name", "arguments"):
                other = _other_call(call, part)
                if other != call:
                    yield f"the {part} of a tool call", [*value[:number], other, *value[number + 1 :]]
        return
    what = "the tools that it may call" if key == TOOLS else f"its `{key}`"
    yield what, _other(value)


def _other_call(call: Any, part: str) -> Any:
    if not isinstance(call, dict):
        return _other(call)
    if isinstance(call.get("function"), dict):
        return call | {"function": _other_call(call["function"], part)}
    if part not in call:
        return call
    other = f"{_PROBE}" if part == "name" else {"probe": _PROBE}
    return call | {part: other}


def _other(value: Any) -> Any:
    """A value of the same kind that says something else."""
    if isinstance(value, str):
        return f"{_PROBE} {value}"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 7261
    if isinstance(value, list):
        return [_other(inner) for inner in value]
    return {key: _other(inner) for key, inner in value.items()} if isinstance(value, dict) else _PROBE


def _not_rendered(turns: Turns, change: _Change) -> UserError:
    ignored = "tools" if change.key == TOOLS else change.key
    fix = "Set `model.chat_template` to one that renders it, or leave such rows out"
    if change.key not in ("content", "role"):
        fix += f"; `ignore: [{ignored}]` in the source goes without it"
    role = turns[change.number - 1].role
    return UserError(
        f"it does not render {change.what} of message {change.number} (by `{role}`)",
        where=_WHERE,
        fix=f"{fix}.",
    )

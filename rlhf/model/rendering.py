"""Conversations → text by the tokenizer's chat template, with a check that it renders what messages say.

The only caller of `apply_chat_template`. A template passes over what it does not know: a role, a key, a whole
message. So each form of conversation (its roles and keys) is rendered again with one thing changed at a time;
what changes nothing in the result is not in the prompt, and is refused by name.
"""

import json
import re
from collections.abc import Callable, Iterator
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
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys that templates render of the newest answer only, and leave out of earlier ones."""
_TOOL_PARTS = ("name", "description", "parameters")
_ESCAPED = re.compile(r"\\[nrt]")
PROBE = "probe 7261"
WHERE = "chat template"

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
    text = render_as_is(tokenizer, turns, open_answer=open_answer)
    _check(tokenizer, turns, text, open_answer=open_answer)
    return text


def renders_whole(tokenizer: Any, turns: Turns) -> bool:
    """Whether each content and each thought is in an open prompt word for word, white space around it aside.

    Templates leave out the thoughts of earlier answers, and some of them trim or quote.
    """
    text = render_as_is(tokenizer, turns, open_answer=True)
    said = [turn.content for turn in turns]
    said += [str(turn.others[key]) for turn in turns for key in THOUGHTS if key in turn.others]
    return all(each.strip() in text for each in said)


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
            where=WHERE,
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


def render_as_is(tokenizer: Any, turns: Turns, *, open_answer: bool) -> str:
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
        except Exception as error:  # a template is a program: it may divide by zero, or call itself for ever
            problems.append(error)
    roles = ", ".join(turn.role for turn in turns)
    reason = " ".join(f"{problems[0]}".split()) or "no reason given"
    if not isinstance(problems[0], TemplateError):
        reason = f"{type(problems[0]).__name__}: {reason}"
    raise UserError(
        f"it refuses a conversation of {roles} ({reason[:300]})",
        where=WHERE,
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
    form = (template_text(tokenizer), open_answer, tuple(form_of(turn) for turn in turns))
    # A content that is not there word for word is looked at each time: its form does not tell why.
    if form in known and all(turn.content.strip() in text for turn in turns):
        return
    _check_escapes(tokenizer, turns)
    for change in (*_changes(turns), *_longer(turns, text)):
        if _says_the_same(tokenizer, change.turns, text, open_answer=open_answer):
            if change.key in THOUGHTS and _renders_when_newest(tokenizer, turns, change):
                continue
            raise _not_rendered(turns, change)
    known.add(form)


def _check_escapes(tokenizer: Any, turns: Turns) -> None:
    """Check that the template's own words hold no line break that is written out.

    Raises:
        UserError: they do: it was escaped twice, on a command line or in YAML.
    """
    plain = tuple(Message(turn.role, PROBE) for turn in turns)
    try:
        texts = [render_as_is(tokenizer, plain, open_answer=open_answer) for open_answer in (False, True)]
    except UserError:
        return  # it takes these roles with more than words alone; then its other texts may hold JSON
    found = next((match for text in texts if (match := _ESCAPED.search(text))), None)
    if found is not None:
        raise UserError(
            f"it writes {found.group()} as two characters, a backslash and a letter, where a line break or a "
            "tab is meant",
            where=WHERE,
            fix="Write one backslash in it, not two, or put the template into a file and name the file.",
        )


def form_of(turn: Message) -> Any:
    """What a template may look at of a message, apart from its words."""
    others = turn.others
    tools = tuple(tuple(sorted(_of_tool(tool))) for tool in others.get(TOOLS, ()))
    return turn.role, bool(turn.content), tuple(sorted(others)), len(others.get("tool_calls", ())), tools


def _says_the_same(tokenizer: Any, turns: Turns, text: str, *, open_answer: bool) -> bool:
    try:
        return render_as_is(tokenizer, turns, open_answer=open_answer) == text
    except UserError:
        return False  # a template that refuses the change has looked at it


def _renders_when_newest(tokenizer: Any, turns: Turns, change: _Change) -> bool:
    """Whether the key of a message is rendered while it is the last one."""
    newest = turns[: change.number]
    try:
        text = render_as_is(tokenizer, newest, open_answer=False)
    except UserError:
        return False
    return not _says_the_same(tokenizer, change.turns[: change.number], text, open_answer=False)


def _longer(turns: Turns, text: str) -> Iterator[_Change]:
    """The conversation with a longer end of each content that is not in the text word for word."""
    for number, turn in enumerate(turns, start=1):
        if turn.content.strip() not in text:
            longer = replace(turn, content=f"{turn.content} {PROBE}")
            yield _Change((*turns[: number - 1], longer, *turns[number:]), "the end", number, "content")


def _changes(turns: Turns) -> Iterator[_Change]:
    """The conversation with one thing changed: each content, role, and other key of each message."""
    for number, turn in enumerate(turns, start=1):

        def changed(what: str, key: str, said: Message, number: int = number) -> _Change:
            return _Change((*turns[: number - 1], said, *turns[number:]), what, number, key)

        if turn.content.strip():
            yield changed("what it says", "content", replace(turn, content=PROBE))
        # Whoever is told apart from the user is told apart. An answer is by its place or its tool calls.
        is_answer = turn.role == "assistant" and (len(turns) == 2 or "tool_calls" in turn.others)
        if turn.role != "user" and not is_answer:
            yield changed("user", "role", replace(turn, role="user"))
        if turn.role not in ("user", "assistant"):
            yield changed("assistant", "role", replace(turn, role="assistant"))
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
    if key == TOOLS and isinstance(value, list):
        for number, tool in enumerate(value):
            for part in _of_tool(tool):
                other = _other_tool(tool, part)
                if other != tool:
                    what = f"the {part} of tool {number + 1}"
                    yield what, [*value[:number], other, *value[number + 1 :]]


def _of_tool(tool: Any) -> list[str]:
    """Which parts a tool has, of those that a model has to know to call it."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    return [part for part in _TOOL_PARTS if isinstance(inner, dict) and part in inner]


def _other_tool(tool: dict[str, Any], part: str) -> dict[str, Any]:
    if isinstance(tool.get("function"), dict):
        return tool | {"function": _other_tool(tool["function"], part)}
    return tool | {part: _other(tool[part])}


def _other_call(call: Any, part: str) -> Any:
    if not isinstance(call, dict):
        return _other(call)
    if isinstance(call.get("function"), dict):
        return call | {"function": _other_call(call["function"], part)}
    if part not in call:
        return call
    other = f"{PROBE}" if part == "name" else {"probe": PROBE}
    return call | {part: other}


def _other(value: Any) -> Any:
    """A value of the same kind that says something else."""
    if isinstance(value, str):
        return f"{PROBE} {value}"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 7261
    if isinstance(value, list):
        return [_other(inner) for inner in value]
    return {key: _other(inner) for key, inner in value.items()} if isinstance(value, dict) else PROBE


def _not_rendered(turns: Turns, change: _Change) -> UserError:
    role = turns[change.number - 1].role
    if change.key == "role":
        return UserError(
            f"it does not render the role of message {change.number}: what `{role}` says is written as if "
            f"`{change.what}` said it",
            where=WHERE,
            fix=f"Set `model.chat_template` to one that knows `{role}`, or leave such rows out.",
        )
    ignored = "tools" if change.key == TOOLS else change.key
    fix = "Set `model.chat_template` to one that renders it, or leave such rows out"
    if change.key != "content":
        fix += f"; `ignore: [{ignored}]` in the source goes without it"
    return UserError(
        f"it does not render {change.what} of message {change.number} (by `{role}`)",
        where=WHERE,
        fix=f"{fix}.",
    )

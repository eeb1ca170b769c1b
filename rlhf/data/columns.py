"""The values of one row, fetched by our names for them and with their types checked.

Three things can be wrong. A value of the wrong type is a `UserError`; the caller adds the row's location. A
well-formed row of no use, such as one with an empty answer, raises `UnusableRowError`, and is counted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlhf.data.records import Comparison, Message, Rank, Turns
from rlhf.errors import UserError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

_TURN = re.compile(r"(?:\n\n|\A\n*)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

_TRANSCRIPT = 'A transcript reads "\\n\\nHuman: …\\n\\nAssistant: …", beginning with the human.'
_MESSAGES = (
    'Messages are a list of {"role": "user", "content": "…"}; an answer is by "assistant" and comes last.'
)
_COMPARISON = "Write a comparison as [i, j, probability that i is better than j]; completions count from 0."
_PROBABILITY = "Give the probability that the first completion is better, as a number from 0 to 1."

P = TypeVar("P", str, Turns, str | Turns)


class UnusableRowError(Exception):
    """A well-formed row that gives no record; `reason` names the count it goes to."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Columns:
    """One row's values under our names; null values are absent, and their names in `nulls`."""

    values: Mapping[str, Any]
    transcripts_become_messages: bool = False
    nulls: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    """Our name → the column it was read from, where that has another name."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Columns that nothing reads, as far as they may state a judgement: see rlhf.data.judgements."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """What the values of `better` mean."""

    def refuse_nulls(self, *names: str) -> None:
        """Check that one of several fields has a value, if any of them is there.

        Raises:
            UserError: none has, and one is null.
        """
        null = [name for name in names if name in self.nulls]
        if null and not any(name in self.values for name in names):
            others = " or ".join(f"`{name}`" for name in names if name != null[0])
            fix = f"Give it a value, give {others} instead, or remove the record."
            raise UserError(f"`{null[0]}` is null", fix=fix)

    def name(self, field_name: str) -> str:
        """The column that a field is read from."""
        return self.names.get(field_name, field_name)

    def text(self, name: str) -> str:
        return _text(self.values[name], f"`{name}`")

    def optional_text(self, name: str) -> str:
        return self.text(name) if name in self.values else ""

    def prompt(self) -> str | Turns:
        """The field `prompt`: text or messages. Text that is a transcript may become messages."""
        value = self.values["prompt"]
        if not isinstance(value, str):
            return usable_prompt(_turns(value, "`prompt`"))
        text = usable_prompt(_text(value, "`prompt`"))
        if self.transcripts_become_messages and text.startswith(HUMAN) and text.rstrip().endswith(ASSISTANT):
            return usable_prompt(_transcript_turns(text.rstrip()))
        return text

    def completion(self) -> str:
        """The field `completion`: text, or a list with one message."""
        return _completion(self.values["completion"], "`completion`")

    def completions(self) -> tuple[str, ...]:
        values = _list(self.values["completions"], "`completions`", "Give a list of two or more completions.")
        return tuple(_completion(value, f"completion {n}") for n, value in enumerate(values, start=1))

    def ranks(self) -> tuple[Rank, ...] | None:
        if "ranks" not in self.values:
            return None
        return tuple(
            _list(self.values["ranks"], "`ranks`", 'Give a list of ranks: 1 is best, "F" is failed.')
        )

    def comparisons(self) -> tuple[Comparison, ...] | None:
        if "comparisons" not in self.values:
            return None
        return tuple(
            _comparison(item) for item in _list(self.values["comparisons"], "`comparisons`", _COMPARISON)
        )

    def probability(self) -> float | None:
        """The field `probability`.

        Raises:
            UnusableRowError: it is there without a value: nobody has said which answer is better.
        """
        if "probability" in self.nulls:
            raise UnusableRowError("probability is null")
        return _probability(self.values["probability"]) if "probability" in self.values else None

    def better(self) -> str | None:
        """Which answer the field `better` names, in the words of the source's `choices`.

        Raises:
            UserError: `choices` does not say what its value means.
            UnusableRowError: it has no value, or neither answer is good.
        """
        if "better" in self.nulls:
            raise UnusableRowError("`better` is null")
        if "better" not in self.values:
            return None
        given = _choice(self.values["better"])
        if given not in self.choices:
            known = ", ".join(self.choices) or "nothing"
            fix = 'Say what it means, for example `choices: {"0": first, "1": second, "2": tie}` '
            fix += f"(first, second, tie or neither); so far `choices` has: {known}."
            raise UserError(f"`better` is {given!r}, which `choices` does not explain", fix=fix)
        if self.choices[given] == "neither":
            raise UnusableRowError("neither answer is good")
        return self.choices[given]

    def conversation(self, name: str) -> tuple[str | Turns, str]:
        """Prompt and completion of a transcript or of messages that end with the assistant's answer.

        The completion of a transcript is stripped. If the prompt stays text, and so ends with "Assistant:",
        the completion gets one space back at its front, so that the two together read as the transcript did.
        """
        value = self.values[name]
        if isinstance(value, str):
            prompt, completion = _split_transcript(_text(value, f"`{name}`"), name)
            if HUMAN in completion:
                raise UnusableRowError("transcript ends with a human turn")
            if self.transcripts_become_messages:
                return _transcript_turns(prompt), completion
            return prompt, f" {completion}" if completion else ""
        turns = _turns(value, f"`{name}`")
        if turns[-1].role != "assistant":
            raise UserError(f"the last message of `{name}` is by `{turns[-1].role}`", fix=_MESSAGES)
        return turns[:-1], turns[-1].content

    def open_conversation(self, name: str) -> str | Turns:
        """The prompt of a transcript or of messages, whether or not an answer follows."""
        value = self.values[name]
        if isinstance(value, str):
            prompt, _ = _split_transcript(_text(value, f"`{name}`"), name)
            return _transcript_turns(prompt) if self.transcripts_become_messages else prompt
        turns = _turns(value, f"`{name}`")
        return turns[:-1] if turns[-1].role == "assistant" else turns

    def continued_prompt(self, name: str) -> tuple[str | Turns, str]:
        """`prompt` and the completion under `name`, which may be messages that repeat the conversation."""
        prompt = self.prompt()
        if isinstance(self.values[name], str):
            return prompt, self.text(name)
        head, completion = self.conversation(name)
        if not head:
            return prompt, completion
        repeated = head[-1].content if isinstance(prompt, str) and not isinstance(head, str) else head
        if repeated != prompt:
            raise UserError(
                f"the messages of `{name}` before the answer are not `prompt`",
                fix="Let the messages repeat `prompt`, or leave out either of the two.",
            )
        return head, completion


def usable_prompt(prompt: P) -> P:
    """The same prompt.

    Raises:
        UnusableRowError: there is nothing but white space in it.
    """
    parts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    if not any(part.strip() for part in parts):
        raise UnusableRowError("empty prompt")
    return prompt


def usable_completion(completion: str) -> str:
    """The same completion.

    Raises:
        UnusableRowError: there is nothing but white space in it.
    """
    if not completion.strip():
        raise UnusableRowError("empty completion")
    return completion


def kind(value: Any) -> str:
    """What a value is, in a user's words."""
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else "an object")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} is {kind(value)}, not text", fix="Write it as text, in quotes.")
    try:
        value.encode()
    except UnicodeEncodeError:
        fix = "Repair the text: half of a character is missing."
        raise UserError(f"{name} holds a lone surrogate, which is not text", fix=fix) from None
    return value


def _list(value: Any, name: str, fix: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} is {kind(value)}, not a list", fix=fix)
    return list(value)


def _turns(value: Any, name: str) -> Turns:
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} is {kind(value)}, not text or messages", fix=_MESSAGES)
    if not value:
        raise UserError(f"{name} is an empty list of messages", fix=_MESSAGES)
    turns = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping):
            raise UserError(f"message {number} of {name} is {kind(message)}", fix=_MESSAGES)
        for key in ("role", "content"):
            if key not in message:
                raise UserError(f"message {number} of {name} has no `{key}`", fix=_MESSAGES)
            if message[key] is None:
                raise UserError(f"`{key}` of message {number} of {name} is null", fix=_MESSAGES)
        role = _text(message["role"], f"`role` of message {number} of {name}")
        turns.append(Message(role, _text(message["content"], f"`content` of message {number} of {name}")))
    return tuple(turns)


def _completion(value: Any, name: str) -> str:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        return _text(value, name)
    turns = _turns(value, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        fix = "Put the earlier messages into `prompt`."
        raise UserError(f"{name} is not one message by the assistant", fix=fix)
    return turns[0].content


def _choice(value: Any) -> str:
    """A value of `better` as `choices` names it: 1 and 1.0 are the same."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        fix = "It is a number or a word for each record, which `choices` explains."
        raise UserError(f"`better` is {kind(value)}", fix=fix)
    return str(value).strip()


def _comparison(value: Any) -> Comparison:
    if isinstance(value, list | tuple) and len(value) == 3:
        first, second, probability = value
        if type(first) is int and type(second) is int:
            return first, second, _probability(probability)
    raise UserError(f"{value!r} is not a comparison", fix=_COMPARISON)


def _probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"a probability is {kind(value)}", fix=_PROBABILITY)
    if not 0.0 <= value <= 1.0:
        raise UserError(f"probability {value} is outside [0, 1]", fix=_PROBABILITY)
    return float(value)


def _split_transcript(text: str, name: str) -> tuple[str, str]:
    """The text up to and including the last "Assistant:", and what follows, stripped."""
    head, marker, tail = text.rpartition(ASSISTANT)
    if not marker or not head.lstrip("\n").startswith("Human:"):
        raise UserError(f"`{name}` is text and not a transcript", fix=_TRANSCRIPT)
    return head + marker, tail.strip()


def _transcript_turns(prompt: str) -> Turns:
    """The messages of an open transcript, which is one that ends with "Assistant:"."""
    _, *parts = _TURN.split(prompt)
    turns = [Message(_ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return tuple(turns[:-1])

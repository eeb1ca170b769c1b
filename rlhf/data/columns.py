"""The values of one row, fetched by our names for them and with their types checked.

Three things can be wrong. A value of the wrong type is a `UserError`; the caller adds the row's location. A
well-formed row of no use, such as one with an empty answer, raises `UnusableRowError`, and is counted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlhf.data.messages import (
    TOOLS,
    checked_text,
    has_no_weight,
    is_messages,
    kind,
    read_turns,
    with_tools,
    without_open_answer,
)
from rlhf.data.messages import UnusableRowError as UnusableRowError
from rlhf.data.records import Comparison, Message, Rank, Turns
from rlhf.errors import UserError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

_TURN = re.compile(r"(?:\n\n|\A\n*)(Human|Assistant):")
_OTHER_MARK = re.compile(r"\n[ \t]*(human|assistant)[ \t]*:", re.IGNORECASE)
_LIKE_TRANSCRIPT = re.compile(r"\s*human[ \t]*:.*\n[ \t]*assistant[ \t]*:", re.IGNORECASE | re.DOTALL)
_MARKED_OTHERWISE = "transcript with turns that are marked otherwise"
_ROLES = {"Human": "user", "Assistant": "assistant"}

_TRANSCRIPT = 'A transcript reads "\\n\\nHuman: …\\n\\nAssistant: …", beginning with the human.'
_COMPARISON = "Write a comparison as [i, j, probability that i is better than j]; completions count from 0."
_PROBABILITY = "Give the probability that the first completion is better, as a number from 0 to 1."

P = TypeVar("P", str, Turns, str | Turns)
A = TypeVar("A", str, Message)


@dataclass(frozen=True)
class Columns:
    """One row's values under our names; null values are absent, and their names in `nulls`."""

    values: Mapping[str, Any]
    transcripts_become_messages: bool = False
    nulls: frozenset[str] = frozenset()
    beside: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns: answers that say what kind of prompt a text is, and `tools`."""
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
        return checked_text(self.values[name], f"`{name}`")

    def optional_text(self, name: str) -> str:
        return self.text(name) if name in self.values else ""

    def prompt(self) -> str | Turns:
        """The field `prompt`: text or messages.

        Text that is a transcript may become messages. Text next to an answer that is messages is what the
        user said before it, whichever stage reads the row: messages that repeat it stand for it, with their
        system message.
        """
        value = self.values["prompt"]
        if not isinstance(value, str):
            return self._offering_tools(usable_prompt(read_turns(value, "`prompt`")))
        text = usable_prompt(checked_text(value, "`prompt`"))
        turns = transcript_as_messages(text) if self.transcripts_become_messages else None
        if turns is not None:
            return self._offering_tools(usable_prompt(_marked_alike(turns)))
        if self.transcripts_become_messages and _LIKE_TRANSCRIPT.match(text):
            raise UnusableRowError(_MARKED_OTHERWISE)
        repeated = self._before_answer(text)
        return text if repeated is None else self._offering_tools(repeated)

    def _before_answer(self, text: str) -> Turns | None:
        """What the row's answers, if they are messages, have before them; None: they are text, or not there.

        Raises:
            UserError: it does not end with the prompt's text.
        """
        beside = {**self.beside, **self.values}
        for name in ("completion", "chosen", "rejected"):
            if is_messages(beside.get(name)):
                head = _without_answer(read_turns(without_open_answer(beside[name]), f"`{name}`"))
                if head and not _repeats(head, text):
                    raise _not_repeated(name)
                return head or (Message("user", text),)
        completions = beside.get("completions")
        if isinstance(completions, list | tuple) and any(is_messages(each) for each in completions):
            return (Message("user", text),)
        return None

    def _offering_tools(self, prompt: str | Turns) -> str | Turns:
        """The conversation with the row's `tools`; a text as it is."""
        return prompt if isinstance(prompt, str) else with_tools(prompt, self.beside.get(TOOLS))

    def completion(self) -> Message:
        """The field `completion`: text, or a list with one message."""
        value = self.values["completion"]
        return _completion(one_turn(value) if isinstance(value, str) else value, "`completion`")

    def completions(self) -> tuple[str, ...]:
        # Sampled ones may run on into a further turn, and be ranked low for it.
        values = _list(self.values["completions"], "`completions`", "Give a list of two or more completions.")
        return tuple(_plain(_completion(value, f"completion {n}")) for n, value in enumerate(values, start=1))

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

    def conversation(self, name: str) -> tuple[str | Turns, Message]:
        """Prompt and answer of a transcript or of messages that end with the assistant's answer.

        The completion of a transcript is stripped. If the prompt stays text, and so ends with "Assistant:",
        the completion gets one space back at its front, so that the two together read as the transcript did.
        """
        value = self.values[name]
        if isinstance(value, str):
            prompt, completion = _split_transcript(checked_text(value, f"`{name}`"), name)
            if HUMAN in completion:
                raise UnusableRowError("transcript ends with a human turn")
            if self.transcripts_become_messages:
                turns = self._offering_tools(_marked_alike(_transcript_turns(prompt)))
                return turns, Message("assistant", completion)
            spaced = f" {completion}" if completion else ""
            return self._offering_tools(prompt), Message("assistant", spaced)
        turns = read_turns(value, f"`{name}`")
        if turns[-1].role != "assistant":
            raise UnusableRowError(f"conversation ends with a turn by {turns[-1].role}")
        if has_no_weight(value[-1]):
            raise UnusableRowError("answer of weight 0")
        return self._offering_tools(turns[:-1]), turns[-1]

    def open_conversation(self, name: str) -> str | Turns:
        """The prompt of a transcript or of messages, whether or not an answer follows."""
        value = self.values[name]
        if isinstance(value, str):
            prompt, _ = _split_transcript(checked_text(value, f"`{name}`"), name)
            if not self.transcripts_become_messages:
                return prompt
            return self._offering_tools(_marked_alike(_transcript_turns(prompt)))
        turns = read_turns(without_open_answer(value), f"`{name}`")
        return self._offering_tools(_without_answer(turns))

    def continued_prompt(self, name: str) -> tuple[str | Turns, Message]:
        """`prompt` and the answer under `name`, which may be messages that repeat the conversation."""
        prompt = self.prompt()
        if isinstance(self.values[name], str):
            return prompt, Message("assistant", one_turn(self.text(name)))
        head, answer = self.conversation(name)
        if not head:
            return prompt, answer
        given = self.values["prompt"]
        repeats = head == prompt
        if isinstance(given, str) and not isinstance(head, str):
            # Two sides may repeat the prompt after different system messages: then they are no pair.
            repeats = repeats or _repeats(head, given)
        if not repeats:
            raise _not_repeated(name)
        return head, answer

    def plain_conversation(self, name: str) -> tuple[str | Turns, str]:
        """As `conversation` or, next to a `prompt`, `continued_prompt`, of an answer that is text alone.

        Raises:
            UnusableRowError: it has more to it, such as `tool_calls`.
        """
        split = self.continued_prompt if "prompt" in self.values else self.conversation
        prompt, answer = split(name)
        return prompt, _plain(answer)


def _without_answer(turns: Turns) -> Turns:
    return turns[:-1] if turns[-1].role == "assistant" else turns


def _repeats(head: Turns, text: str) -> bool:
    """Whether a conversation before its answer ends with the text, or the user begins with it."""
    users = [turn.content.strip() for turn in head if turn.role == "user"]
    return text.strip() in (head[-1].content.strip(), *users[:1])


def one_turn(answer: str) -> str:
    """The same answer.

    Raises:
        UnusableRowError: it is a text that goes on with further turns of a transcript.
    """
    if HUMAN in answer or ASSISTANT in answer:
        raise UnusableRowError("answer that goes on with further turns")
    return answer


def _not_repeated(name: str) -> UserError:
    return UserError(
        f"the messages of `{name}` before the answer are not `prompt`",
        fix="Let the messages repeat `prompt`, or leave out either of the two.",
    )


def transcript_as_messages(text: str) -> Turns | None:
    """The messages of an open transcript; None: the text is none."""
    if text.startswith(HUMAN) and text.rstrip().endswith(ASSISTANT):
        return _transcript_turns(text.rstrip())
    return None


def usable_prompt(prompt: P) -> P:
    """The same prompt.

    Raises:
        UnusableRowError: there is nothing but white space in it.
    """
    parts = [prompt] if isinstance(prompt, str) else [message.content + message.more for message in prompt]
    if not any(part.strip() for part in parts):
        raise UnusableRowError("empty prompt")
    return prompt


def usable_completion(completion: A) -> A:
    """The same completion, or answer.

    Raises:
        UnusableRowError: there is nothing but white space in it.
    """
    said = completion if isinstance(completion, str) else completion.content + completion.more
    if not said.strip():
        raise UnusableRowError("empty completion")
    return completion


def _list(value: Any, name: str, fix: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} is {kind(value)}, not a list", fix=fix)
    return list(value)


def _completion(value: Any, name: str) -> Message:
    if not isinstance(value, list | tuple):
        return Message("assistant", checked_text(value, name))
    turns = read_turns(value, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        fix = "Put the earlier messages into `prompt`."
        raise UserError(f"{name} is not one message by the assistant", fix=fix)
    if has_no_weight(value[-1]):
        raise UnusableRowError("answer of weight 0")
    return turns[0]


def _plain(answer: Message) -> str:
    """The text of an answer among several, which are told apart by their texts alone."""
    if answer.more:
        raise UnusableRowError(f"answer with {' and '.join(answer.others)}")
    return answer.content


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


def _marked_alike(turns: Turns) -> Turns:
    """The same messages of a transcript.

    Raises:
        UnusableRowError: what one says goes on with a mark that is not set apart, or in lower case.
    """
    if any(_OTHER_MARK.search(turn.content) for turn in turns):
        raise UnusableRowError(_MARKED_OTHERWISE)
    return turns


def _transcript_turns(prompt: str) -> Turns:
    """The messages of an open transcript, which is one that ends with "Assistant:"."""
    _, *parts = _TURN.split(prompt)
    turns = [Message(_ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return tuple(turns[:-1])

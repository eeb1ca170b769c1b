"""What is asked of a feedback model, and what it answers, whichever kind of model it is."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from labeling.constitution.replies import Problem
from rlhf.data.records import Message, Turns


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question: the model writes a text, or, where there are options, says which of them it is."""

    messages: Turns
    options: tuple[str, ...] = ()
    max_tokens: int = 1
    temperature: float = 1.0
    seed: int = 0
    """What the noise of a text is a function of, 31 bits."""

    @property
    def content(self) -> str:
        """All of it, as text: equal for equal requests and only for them."""
        return json.dumps(asdict(self), ensure_ascii=True, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A text."""

    text: str
    logprob: float | None = None
    """Of the whole text, nats, where the model tells; unknown where reasoning came before it."""
    problem: Problem = ""
    """`cut_off`: the text has no end; `refused`: the model, or a filter before it, did not answer."""

    @property
    def is_finished(self) -> bool:
        """Whether it is a whole answer, fit to be learned."""
        return bool(self.text) and not self.problem


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """How likely the model finds each option."""

    logprobs: tuple[float, ...]
    """Nats, in the order of the options; normalized over them."""
    mass: float | None = None
    """Probability of all options together among everything that the model might have said, where it tells."""
    method: str = "logprobs"
    """`logprobs`, `votes` or `typed`."""

    @property
    def log_odds(self) -> float:
        """Of the first of two options against the second."""
        first, second = self.logprobs
        return first - second


Answer = Written | Chosen


class Model(Protocol):
    """A feedback model."""

    name: str
    """What records call it."""

    def ask(self, requests: Sequence[Request], desc: str) -> list[Answer | None]:
        """An answer to each request in its place; None where the model gave none that can be used."""
        ...


def written(answers: Sequence[Answer | None]) -> list[Written | None]:
    """The answers to requests without options, also if they were cut off; no text, or a refusal, is none."""
    return [each if isinstance(each, Written) and is_text(each) else None for each in answers]


def is_text(answer: Written) -> bool:
    return bool(answer.text) and answer.problem != "refused"


def chosen(answers: Sequence[Answer | None]) -> list[Chosen | None]:
    """The answers to requests with options."""
    return [each if isinstance(each, Chosen) else None for each in answers]


def normalized(logprobs: Sequence[float]) -> list[float]:
    """Log-probabilities that together make 1."""
    total = log_sum(logprobs)
    return [value - total for value in logprobs]


def log_sum(values: Sequence[float]) -> float:
    """Logarithm of the sum of what `values` are logarithms of."""
    highest = max(values)
    if highest == -math.inf:
        return highest
    return highest + math.log(sum(math.exp(value - highest) for value in values))


def seed_of(*parts: object) -> int:
    """31 bits that are a function of `parts`, which tell one random choice from all others."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def as_turns(prompt: str | Turns) -> Turns:
    """A prompt as a conversation."""
    return (user(prompt.strip()),) if isinstance(prompt, str) else prompt


def as_completion(prompt: str | Turns, text: str) -> str:
    """A text as the completion of a prompt.

    A plain prompt and its completion are concatenated, so a space is put between the two if there is none.
    """
    needs_space = isinstance(prompt, str) and not prompt[-1:].isspace()
    return f" {text}" if needs_space else text


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)

"""The three kinds of data: demonstrations for SFT, rankings for the reward model, prompts for PPO.

A prompt is plain text or a conversation (`Turns`); a completion is always the plain text of the
assistant's answer. For a plain-text prompt, prompt and completion are *concatenated*, so whatever
separates them (a space, a newline) belongs to one of the two. Records check themselves when they are made,
and their JSON is what `rlhf.data.sources` reads back to equal records.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf.errors import UserError

FAILED: Literal["F"] = "F"
"""The rank of a completion that failed: below every number, and not comparable with another failed one."""

Rank = int | Literal["F"]
Comparison = tuple[int, int, float]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    more: str = ""
    """JSON of its other keys, such as `tool_calls`; of `tools`, which are the conversation's; or nothing.

    Text, so that messages compare and hash; keys inside a value keep their order, which a template may show.
    """

    @property
    def others(self) -> dict[str, Any]:
        """Its keys but role and content."""
        found: dict[str, Any] = json.loads(self.more) if self.more else {}
        return found

    def with_others(self, others: Mapping[str, Any]) -> "Message":
        """The same message with these other keys, and no more."""
        return Message(self.role, self.content, _compact(dict(sorted(others.items()))) if others else "")

    def to_json(self) -> dict[str, Any]:
        """The message as data sets have it."""
        return {"role": self.role, "content": self.content, **self.others}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Message":
        """What `to_json` gave."""
        others = {key: value for key, value in values.items() if key not in ("role", "content")}
        return Message(values["role"], values["content"]).with_others(others)


Turns = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a policy answers."""

    prompt: str | Turns
    where: str = field(default="", compare=False, repr=False)
    """Where it was read, `file, line 41`; no part of the record."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt and the answer that a policy should learn to give."""

    prompt: str | Turns
    completion: str
    more: str = ""
    """What the answer has beside its text, `tool_calls` say: see `Message.more`."""
    annotator: str | None = None
    where: str = field(default="", compare=False, repr=False)
    """Where it was read, `file, line 41`; no part of the record."""

    @property
    def answer(self) -> Message:
        """The completion as a message."""
        return Message("assistant", self.completion, self.more)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """K >= 2 completions of one prompt, and which of them are better: either `ranks` or `comparisons`.

    Raises:
        UserError: fewer than two completions, not exactly one judgement, or one that does not fit them.
    """

    prompt: str | Turns
    completions: tuple[str, ...]
    ranks: tuple[Rank, ...] | None = None
    """One per completion: 1 is best, equal numbers tie, "F" failed and is below every number."""
    comparisons: tuple[Comparison, ...] | None = None
    """(i, j, probability that completion i is better than completion j); indices count from 0."""
    annotator: str | None = None
    where: str = field(default="", compare=False, repr=False)
    """Where it was read, `file, line 41`; no part of the record."""

    def __post_init__(self) -> None:
        if len(self.completions) < 2:
            raise UserError(
                f"a ranking needs at least 2 completions ({len(self.completions)} given)",
                fix="Add completions of the same prompt, or remove the record.",
            )
        if (self.ranks is None) == (self.comparisons is None):
            found = "neither `ranks` nor" if self.ranks is None else "both `ranks` and"
            raise UserError(
                f"a ranking with {found} `comparisons`", fix="Give exactly one of `ranks` and `comparisons`."
            )
        if self.ranks is not None:
            _check_ranks(self.ranks, len(self.completions))
        if self.comparisons is not None:
            _check_comparisons(self.comparisons, len(self.completions))


Record = Prompt | Demonstration | Ranking


def _check_ranks(ranks: tuple[Any, ...], num_completions: int) -> None:
    fix = 'Give every completion a rank: a whole number from 1 (best), or "F" for a failed one.'
    if len(ranks) < num_completions:
        raise UserError(
            f"completion {len(ranks) + 1} has no rank ({num_completions} completions, {len(ranks)} ranks)",
            fix=fix,
        )
    if len(ranks) > num_completions:
        raise UserError(f"{len(ranks)} ranks for {num_completions} completions", fix=fix)
    for number, rank in enumerate(ranks, start=1):
        is_number = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
        if not is_number and rank != FAILED:
            raise UserError(f"completion {number} has rank {rank!r}", fix=fix)


def _check_comparisons(comparisons: tuple[Comparison, ...], num_completions: int) -> None:
    fix = "Write a comparison as [i, j, probability that i is better than j]; completions count from 0."
    if not comparisons:
        raise UserError("`comparisons` is empty", fix=fix)
    for first, second, probability in comparisons:
        if not (0 <= first < num_completions and 0 <= second < num_completions) or first == second:
            raise UserError(
                f"comparison [{first}, {second}] does not name two of {num_completions} completions",
                fix=fix,
            )
        if not 0.0 <= probability <= 1.0:
            raise UserError(f"probability {probability} is outside [0, 1]", fix=fix)


def bare_text(text: str) -> str:
    """What of an answer a person may prefer: not its kind of line breaks, nor the white space around it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def prompt_key(prompt: str | Turns) -> str:
    """Canonical JSON of a prompt: equal for equal prompts and only for them, in ASCII."""
    value: Any = prompt
    if not isinstance(prompt, str):
        value = [dict(sorted(message.to_json().items())) for message in prompt]
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain JSON values; fields that are not set are left out."""
    values: dict[str, Any] = {"prompt": _prompt_json(record.prompt)}
    if isinstance(record, Demonstration):
        values["completion"] = [record.answer.to_json()] if record.more else record.completion
        if record.annotator is not None:
            values["annotator"] = record.annotator
    elif isinstance(record, Ranking):
        values["completions"] = list(record.completions)
        if record.ranks is not None:
            values["ranks"] = list(record.ranks)
        if record.comparisons is not None:
            values["comparisons"] = [list(comparison) for comparison in record.comparisons]
        if record.annotator is not None:
            values["annotator"] = record.annotator
    return values


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write one record a line; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(json.dumps(to_json(record), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _prompt_json(prompt: str | Turns) -> str | list[dict[str, Any]]:
    if isinstance(prompt, str):
        return prompt
    return [message.to_json() for message in prompt]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

"""Demonstrations as token ids: which tokens are the prompt, which are learned, and what does not fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from rlhf.data.counts import RecordCounts
from rlhf.data.records import Demonstration, Prompt
from rlhf.data.sources import split_by_prompt
from rlhf.errors import UserError
from rlhf.model import chat
from rlhf.model.answers import AnswerChangedError
from rlhf.model.fitting import fit_prompt
from rlhf.model.remarks import note_remarks
from rlhf.model.rendering import of_record
from rlhf.settings.groups import LengthSettings

_STEP = "length"


@dataclass(frozen=True)
class Example:
    """A demonstration that fits: the loss is on `completion_ids`, whose last one is an EOS."""

    demonstration: Demonstration
    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Examples:
    """The two sides of a split by prompt."""

    train: list[Example]
    held_out: list[Example]


class Encoder:
    """Turns demonstrations into examples and counts those that do not fit."""

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: Sequence[int],
        *,
        length: LengthSettings,
        context: int,
        counts: RecordCounts,
    ) -> None:
        self.tokenizer, self.eos_ids, self.counts = tokenizer, eos_ids, counts
        self.max_tokens = min(length.max_tokens or context, context)
        self.policy = length.over_length
        self.fix = chat.length_fix("sft", length, context=context)

    def split(self, records: Sequence[Demonstration], *, fraction: float, seed: int) -> Examples:
        """Split by prompt, then encode both sides.

        Raises:
            UserError: a demonstration does not fit under policy `error`.
        """
        train, held_out = split_by_prompt(records, fraction=fraction, seed=seed)
        return Examples(train=self.encode(train), held_out=self.encode(held_out))

    def encode(self, records: Sequence[Demonstration]) -> list[Example]:
        """The demonstrations that fit, in their order."""
        return [example for record in records if (example := self._encode(record)) is not None]

    def _encode(self, record: Demonstration) -> Example | None:
        where = record.where or f"demonstration {chat.prompt_text(record.prompt)[:60]!r}"
        try:
            prompt_ids = chat.encode_prompt(self.tokenizer, record.prompt)
            completion_ids = chat.encode_completion(
                self.tokenizer, record.prompt, record.answer, prompt_ids=prompt_ids, eos=self.eos_ids
            )
        except AnswerChangedError as changed:
            self.counts.add(_STEP, changed.what)
            return None
        except UserError as error:
            raise of_record(error, where) from None
        note_remarks(self.counts, _STEP, self.tokenizer, record.prompt, [record.answer])
        fitted = fit_prompt(
            self.tokenizer,
            record.prompt,
            len(completion_ids),
            self.max_tokens,
            self.policy,
            prompt_ids=prompt_ids,
            where=where,
            fix=self.fix,
        )
        if fitted.outcome == "truncated":
            self.counts.add(_STEP, "truncated")
        if fitted.ids is None:
            self.counts.add(_STEP, f"longer than {self.max_tokens} tokens")
            return None
        return Example(replace(record, prompt=fitted.prompt), fitted.ids, completion_ids)


def dataset(examples: Sequence[Example]) -> Dataset:
    """The columns that TRL's trainer takes without tokenizing again: ids, and 1 where the loss is."""
    return Dataset.from_dict(
        {
            "input_ids": [example.prompt_ids + example.completion_ids for example in examples],
            "completion_mask": [
                [0] * len(example.prompt_ids) + [1] * len(example.completion_ids) for example in examples
            ],
        }
    )


def texts(records: Sequence[Demonstration], prompts: Sequence[Prompt]) -> Iterator[str]:
    """Every piece of text that a tokenizer from scratch is trained on."""
    everything: list[Demonstration | Prompt] = [*records, *prompts]
    for record in everything:
        if isinstance(record.prompt, str):
            yield record.prompt
        else:
            yield from (message.content for message in record.prompt)
        if isinstance(record, Demonstration):
            yield record.completion

"""Prompts that are too long: shortened by whole turns where they have turns, else by tokens.

A conversation without its system message, or one that begins in the middle of a turn, is another one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.columns import ASSISTANT, HUMAN
from rlhf.data.messages import TOOLS, with_tools
from rlhf.data.records import Turns
from rlhf.errors import UserError
from rlhf.model.chat import Outcome, Policy, encode_prompt, fit
from rlhf.model.rendering import of_record

_SETTERS = ("system", "developer")


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that leaves room for its completion."""

    ids: list[int] | None
    """None: no part of it that may stand alone is short enough."""
    prompt: str | Turns
    """What the ids encode; of a plain text cut by tokens, the whole text."""
    outcome: Outcome


def fit_prompt(
    tokenizer: Any,
    prompt: str | Turns,
    completion_len: int,
    max_length: int,
    policy: Policy,
    *,
    prompt_ids: Sequence[int] | None = None,
    sampled: bool = False,
    where: str | None = None,
    fix: str | None = None,
) -> FittedPrompt:
    """`prompt` as ids that go before a completion of `completion_len` tokens within `max_length` tokens.

    `truncate_left` removes the oldest turns of a conversation or a transcript, as many as it must, and keeps
    what stands before the first of them (a system message, tools); the last turn is never cut. A text
    without turns loses tokens: see `fit`, which also explains the other parameters. `prompt_ids` saves
    encoding the prompt again.

    Raises:
        UserError: it does not fit and the policy is `error`, or as `encode_prompt`; `where` is named.
    """
    try:
        ids = list(prompt_ids) if prompt_ids is not None else encode_prompt(tokenizer, prompt)
        if policy == "truncate_left" and len(ids) + completion_len > max_length and _has_turns(prompt):
            for shorter in _shorter(prompt):
                ids = encode_prompt(tokenizer, shorter)
                if len(ids) + completion_len <= max_length:
                    return FittedPrompt(ids, shorter, "truncated")
            return FittedPrompt(None, prompt, "dropped")
    except UserError as error:
        raise (of_record(error, where) if where else error) from None
    fitted, outcome = fit(
        ids,
        completion_len,
        max_length,
        policy,
        bos_token_id=tokenizer.bos_token_id,
        sampled=sampled,
        where=where,
        fix=fix,
    )
    return FittedPrompt(fitted, prompt, outcome)


def _has_turns(prompt: str | Turns) -> bool:
    if not isinstance(prompt, str):
        return True
    return prompt.rstrip().endswith(ASSISTANT) and HUMAN in f"\n\n{prompt.lstrip()}"


def _shorter(prompt: str | Turns) -> Iterator[str | Turns]:
    """The prompt without its oldest turn, without its two oldest turns, and so on: the last turn stays."""
    if isinstance(prompt, str):
        preamble, *turns = prompt.split(HUMAN)
        if preamble.lstrip().startswith("Human:"):  # the first turn, without the blank line before it
            turns.insert(0, preamble)
            preamble = ""
        for number in range(1, len(turns)):
            yield preamble + "".join(HUMAN + turn for turn in turns[number:])
        return
    first = next((n for n, turn in enumerate(prompt) if turn.role not in _SETTERS), len(prompt))
    head = prompt[:first]
    rest = prompt[first:]
    tools = prompt[0].others.get(TOOLS)
    for number, turn in enumerate(rest):
        if number and turn.role == "user":
            yield with_tools((*head, *rest[number:]), tools)

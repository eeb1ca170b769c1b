"""What is said of records that are used, and of which a model sees something else than a reader does."""

from collections.abc import Sequence
from typing import Any

from rlhf.data.counts import RecordCounts
from rlhf.data.records import Message, Turns
from rlhf.model.answers import added_to_answer
from rlhf.model.chat import reads_like_tokens
from rlhf.model.rendering import renders_whole

LIKE_TOKENS = "reads like a special token, kept as text"
SHORTENED = "messages that the chat template shortens"


def note_remarks(
    counts: RecordCounts, step: str, tokenizer: Any, prompt: str | Turns, answers: Sequence[Message] = ()
) -> None:
    """Count a record under `step` that holds text like a special token's, or is not rendered to the word.

    A data set of ready-made prompts (`<|im_start|>user…`) is seen by this: its marks are no tokens.
    """
    said = [prompt] if isinstance(prompt, str) else [turn.content + turn.more for turn in prompt]
    said += [answer.content + answer.more for answer in answers]
    if any(reads_like_tokens(tokenizer, text) for text in said):
        counts.note(step, LIKE_TOKENS)
    if not isinstance(prompt, str) and not renders_whole(tokenizer, prompt):
        counts.note(step, SHORTENED)
    if not isinstance(prompt, str):
        added = {added_to_answer(tokenizer, (*prompt, answer)) for answer in answers}
        for text in sorted(added - {""}):
            counts.note(step, f"the chat template adds {' '.join(text.split())} to the answer")

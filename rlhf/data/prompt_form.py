"""Whether a run's prompts that are text stay text or are what a user says: one decision for all its stages.

A model that was tuned on conversations answers in a chat template. A prompt that another source has as text
would reach it bare; it is the same prompt, and is given to it as one message of the user. What the SFT stage
read decides; a source's `text_prompts` decides otherwise.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from rlhf.data.columns import transcript_as_messages
from rlhf.data.records import Demonstration, Message, Prompt, Ranking, Turns, prompt_key
from rlhf.runs.manifest import MANIFEST, Manifest

Form = Literal["text", "messages"]
FORM = "prompt_form"
"""Its key among the record counts in the manifests of the stages SFT and reward."""
_SAY_ONE = "`text_prompts: messages` in a source makes conversations of its texts"
NOTE = "text as one user message"
TURNS_NOTE = "transcript as its messages"

_SETTERS = ("system", "developer")

R = TypeVar("R", bound=Prompt | Demonstration | Ranking)


def form_of(records: Sequence[Prompt | Demonstration | Ranking]) -> Form:
    """`messages` if any prompt is a conversation."""
    return "text" if all(isinstance(record.prompt, str) for record in records) else "messages"


def noted_form(run_folder: Path, stage: str = "sft") -> Form | None:
    """What a finished stage notes, SFT or reward; None: there is none, or it is older than such notes."""
    path = run_folder / stage / MANIFEST
    noted = Manifest.read(path).accounts.get(FORM) if path.is_file() else None
    forms: dict[str, Form] = {"text": "text", "messages": "messages"}
    return forms.get(str(noted))


def form_of_run(run_folder: Path) -> Form:
    """What becomes of text prompts in the stages after SFT: they stay as they are where it notes nothing."""
    return noted_form(run_folder) or "text"


def split_key(prompt: str | Turns, form: Form) -> str:
    """What decides on which side of a split a prompt is, in a run of this form: that of its text or messages.

    The same for a text and for a message of the user with this text: one source may have as the one what
    another has as the other, with a line break at its end or an empty system message in front.
    """
    if form == "messages":
        turns = [replace(turn, content=turn.content.strip()) for turn in conversation_of(prompt)]
        said = tuple(turn for turn in turns if turn.content or turn.more or turn.role not in _SETTERS)
        return prompt_key(said or tuple(turns))
    if not isinstance(prompt, str) and prompt == (Message("user", prompt[0].content),):
        return prompt_key(prompt[0].content)
    return prompt_key(prompt)


def warn_of_other_form(stage: str, records: Sequence[Prompt | Ranking], run_folder: Path) -> None:
    """Say on stderr that some prompts of a run reach the model in its chat template, and others bare.

    Where SFT has noted nothing, text stays as it is in every stage, and is compared with the conversations
    beside it and with what the reward stage has noted.
    """
    number = sum(not isinstance(record.prompt, str) for record in records)
    noted = noted_form(run_folder)
    what = ""
    if number and noted == "text":
        what = f"{number:,} of {len(records):,} prompts are conversations, and SFT knew none: the model "
        what += "has not seen its chat template in this run"
    elif noted is None and 0 < number < len(records):
        what = f"{number:,} of {len(records):,} prompts are conversations, and the others are bare text: "
        what += _SAY_ONE
    elif noted is None and stage != "reward" and records:
        ours, theirs = ("conversations", "bare text") if number else ("bare text", "conversations")
        if noted_form(run_folder, "reward") not in (None, "messages" if number else "text"):
            what = f"the prompts are {ours}, and those of the reward stage were {theirs}: {_SAY_ONE}"
    if what:
        print(f"warning: {stage}: {what}", file=sys.stderr)


def as_conversation(record: R) -> R:
    """The record with its prompt as a conversation; what parted its texts goes: line breaks, or a space."""
    if not isinstance(record.prompt, str):
        return record
    changes: dict[str, object] = {"prompt": conversation_of(record.prompt)}
    if isinstance(record, Demonstration):
        changes["completion"] = _begun(record.completion)
    elif isinstance(record, Ranking):
        changes["completions"] = tuple(_begun(completion) for completion in record.completions)
    changed: R = replace(record, **changes)  # type: ignore[arg-type]  # of the fields named above
    return changed


def _begun(completion: str) -> str:
    """A completion without the empty lines or the one space before it: its first line stays indented."""
    lines = re.sub(r"\A(?:[^\S\n]*\n)+", "", completion)
    return lines.removeprefix(" ") if not lines.startswith("  ") else lines


def conversation_of(prompt: str | Turns) -> Turns:
    """A transcript as its messages, any other text as one message of the user."""
    if not isinstance(prompt, str):
        return prompt
    return transcript_as_messages(prompt) or (Message("user", prompt.strip()),)

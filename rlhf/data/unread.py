"""What a source's rows say that nothing reads: named once per source, or refused if it belongs to prompts."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rlhf.data.cells import says_nothing
from rlhf.data.records import Turns
from rlhf.errors import UserError

# Columns whose content would belong to a prompt, compared in lower case without what is no letter or digit.
_BEFORE = (
    r"sys|system(prompts?|messages?|msgs?|instructions?|texts?|contents?|role)*"
    r"|sys(prompts?|messages?|msgs?|instructions?)"
    r"|((chat|dialogu?e?|conversations?|messages?|turns?|previous|past)?histor(y|ies))"
    r"|(previous|prior|past|earlier)(turns?|messages?|dialogu?e?|conversations?)"
)
_CHANGES_PROMPTS = re.compile(
    rf"{_BEFORE}|functions|documents?|docs|contexts?|passages?|paragraphs?|articles?|dialog(ue)?s?"
    r"|chattemplatekwargs|images?|videos?|audios?|conversations|messages"
)
_INSIDE = re.compile(_BEFORE)
"""Those of them that are looked for inside an object, `metadata.system`: its other keys say many things."""
_BESIDE_INSTRUCTION = "input"
_LONG_ENOUGH = 12
"""A shorter text may be part of a prompt by chance."""


class UnreadColumns:
    """Counts, of one source, in how many rows each column that nothing reads says something."""

    def __init__(self, ignored: Collection[str]) -> None:
        self._ignored = ignored
        self._counts: Counter[str] = Counter()

    def see(self, row: Mapping[str, Any], read: Collection[str]) -> None:
        """Look at a row of which the columns `read` are read."""
        for name, value in row.items():
            if name not in read and name not in self._ignored and not says_nothing(value):
                self._counts[name] += 1

    def counts(self) -> dict[str, int]:
        """Column → rows in which it says something."""
        return dict(self._counts)

    def refuse_prompt_parts(
        self, row: Mapping[str, Any], read: Collection[str], prompt: str | Turns, *, fields: Collection[str]
    ) -> None:
        """Check that no column is passed over which says something to the model.

        What the prompt has in it already is not lost. `fields` are ours that the prompt was made of.

        Raises:
            UserError: there is such a column.
        """
        said = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
        for name, value in self._parts(row, read):
            plain = _letters(name.rpartition(".")[2])
            pattern = _INSIDE if "." in name and name not in row else _CHANGES_PROMPTS
            by_instruction = plain == _BESIDE_INSTRUCTION and (
                "prompt" in fields or "question" in fields or "instruction" in fields
            )
            beside_messages = plain == "prompt" and "messages" in fields
            if not (pattern.fullmatch(plain) or by_instruction or beside_messages):
                continue
            if (
                name not in self._ignored
                and not says_nothing(value)
                and not _is_in(_without_answer(value), said)
            ):
                raise UserError(
                    f"the column `{name}` would be part of the prompt, and nothing reads it",
                    fix=f"Put it into the messages, or into a text (`templates: {{prompt: ...}}`); `ignore: "
                    f"[{name}]` in the source goes without it.",
                )

    def _parts(self, row: Mapping[str, Any], read: Collection[str]) -> Iterator[tuple[str, Any]]:
        for name, value in row.items():
            if name in read or name in self._ignored:
                continue
            yield name, value
            if isinstance(value, Mapping):
                yield from ((f"{name}.{inner}", each) for inner, each in value.items())


def _without_answer(value: Any) -> Any:
    """Of messages those before the answer."""
    last = value[-1] if isinstance(value, list | tuple) and value else None
    is_answer = isinstance(last, Mapping) and (last.get("role") or last.get("from")) in ("assistant", "gpt")
    return value[:-1] if is_answer else value


def _letters(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "", name.casefold())


def _is_in(value: Any, said: list[str]) -> bool:
    """Whether all of its text is in what a prompt says."""
    texts = list(_texts(value))
    return bool(texts) and all(_is_said(text, said) for text in texts)


def _is_said(text: str, said: list[str]) -> bool:
    if len(text) < _LONG_ENOUGH:
        return any(text == each.strip() for each in said)
    return any(text in each for each in said)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value; of messages what they say, and not who says it."""
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, Mapping):
        for name, each in value.items():
            if name not in ("role", "from", "type"):
                yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)

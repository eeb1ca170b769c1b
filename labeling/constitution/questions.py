"""The words in which a feedback model is asked, and its worked examples.

A question is always a conversation that begins with the user and alternates, so that every chat template
takes it. What is judged stands between marks, and cannot hold such a mark itself: a response must not be able
to end, and continue as the question.
"""

import re
from collections.abc import Iterator, Sequence

from labeling.constitution.constitution import ComparisonExample, Constitution, Principle
from labeling.constitution.feedback import assistant, user
from rlhf.data.records import Turns
from rlhf.model.chat import prompt_text

_MARK = re.compile(r"<(/?(?:conversation|response))")
OPTIONS = ("A", "B")
"""The first and the second response, in the order shown."""

_CRITIQUE = """\
Here is a conversation, and a response to it.

<conversation>
{prompt}
</conversation>

<response>
{response}
</response>

{request}"""
_REVISION = "{request}\n\nWrite the revised response and nothing else."
_COMPARISON = """\
Here is a conversation, and two responses to it.

<conversation>
{prompt}
</conversation>

<response-A>
{first}
</response-A>

<response-B>
{second}
</response-B>

{question}"""
_ANSWER = "Answer with one letter, A or B."
_REASON = "Before you answer, think about it in a few sentences. Do not give the answer yet."
_NOW_ANSWER = f"Now answer the question. {_ANSWER}"


def critique(
    constitution: Constitution, principle: Principle, prompt: str | Turns, response: str, num_examples: int
) -> Turns:
    """Asks what is wrong with a response."""
    turns: Turns = ()
    for example in constitution.examples.critiques[:num_examples]:
        by = constitution.by_id(example.principle)
        turns += (user(_critique(by, example.prompt, example.response)), assistant(example.critique))
        turns += (user(_revision(by)), assistant(example.revision))
    return (*turns, user(_critique(principle, prompt, response)))


def revision(asked: Turns, found: str, principle: Principle) -> Turns:
    """Asks for the response once more: continues from the question `asked` and the critique `found`."""
    return (*asked, assistant(found), user(_revision(principle)))


def comparison(
    constitution: Constitution,
    principle: Principle,
    prompt: str | Turns,
    shown: Sequence[str],
    num_examples: int,
) -> Turns:
    """Asks which of two responses, in the order shown, is the better one."""
    turns: Turns = ()
    for example, asked in _compared_examples(constitution, num_examples):
        turns += (user(f"{asked} {_ANSWER}"), assistant(OPTIONS[example.better - 1]))
    return (*turns, user(f"{_comparison(principle, prompt, shown)} {_ANSWER}"))


def reasoning(
    constitution: Constitution,
    principle: Principle,
    prompt: str | Turns,
    shown: Sequence[str],
    num_examples: int,
) -> Turns:
    """Asks for a train of thought about the same; `answer_after` asks for the answer."""
    turns: Turns = ()
    for example, asked in _compared_examples(constitution, num_examples):
        turns += (user(f"{asked} {_REASON}"), assistant(example.reasoning))
        turns += (user(_NOW_ANSWER), assistant(OPTIONS[example.better - 1]))
    return (*turns, user(f"{_comparison(principle, prompt, shown)} {_REASON}"))


def answer_after(asked: Turns, thought: str) -> Turns:
    """Asks for the answer after the train of thought that `asked` led to."""
    return (*asked, assistant(thought), user(_NOW_ANSWER))


def _critique(principle: Principle, prompt: str | Turns, response: str) -> str:
    return _CRITIQUE.format(
        prompt=_quoted(prompt_text(prompt)),
        response=_quoted(response),
        request=principle.critique_request.strip(),
    )


def _revision(principle: Principle) -> str:
    return _REVISION.format(request=principle.revision_request.strip())


def _compared_examples(
    constitution: Constitution, num_examples: int
) -> Iterator[tuple[ComparisonExample, str]]:
    """The first worked comparisons, each with its question."""
    for example in constitution.examples.comparisons[:num_examples]:
        by = constitution.by_id(example.principle)
        yield example, _comparison(by, example.prompt, (example.first, example.second))


def _comparison(principle: Principle, prompt: str | Turns, shown: Sequence[str]) -> str:
    first, second = shown
    return _COMPARISON.format(
        prompt=_quoted(prompt_text(prompt)),
        first=_quoted(first),
        second=_quoted(second),
        question=principle.comparison_question.strip(),
    )


def _quoted(text: str) -> str:
    """`text` with a space in every mark of ours."""
    return _MARK.sub(r"< \1", text)

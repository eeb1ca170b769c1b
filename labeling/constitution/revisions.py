"""The supervised stage: a model answers, criticizes its answer by a principle, revises it, and again.

Prompts go through it side by side, one kind of question after the other: all responses, then all critiques of
the first round, all revisions, and so on. What is asked is a function of the seed and the prompt, so a stage
that was interrupted asks the same questions again, finds most answers in the cache, and ends the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from labeling.constitution import questions
from labeling.constitution.config import RevisionsSettings, TextSettings
from labeling.constitution.constitution import Constitution, Principle
from labeling.constitution.feedback import (
    Answer,
    Model,
    Request,
    Written,
    as_completion,
    as_turns,
    is_text,
    seed_of,
    written,
)
from labeling.constitution.prompts import GroupedPrompt
from labeling.constitution.replies import REFUSALS, Problem, is_refusal
from rlhf.data.records import Demonstration, Prompt, Turns, prompt_key, to_json

GIVEN = "given"
"""The model of responses that came from a file."""


@dataclass(frozen=True)
class LeftOut:
    """A text that came and is not used."""

    what: Literal["critique", "revision"]
    why: Problem
    said: Written


@dataclass(frozen=True)
class Round:
    """One critique and one revision, with all that they came from."""

    number: int
    principle: str
    critique_seed: int
    revision_seed: int
    critique: Written | None
    revision: Written | None
    """None where the model gave nothing that can be used: the text before stands."""
    left_out: LeftOut | None = None
    """A refusal, or a revision that was cut off."""


@dataclass(frozen=True)
class Draft:
    """A prompt, its first response, and the rounds it went through."""

    asked: GroupedPrompt
    number: int
    """How often its prompt had stood there before: tells equal ones apart."""
    response: Written
    model: str
    """Who wrote the response."""
    seed: int | None
    rounds: tuple[Round, ...] = field(default=())

    @property
    def texts(self) -> list[str]:
        """The response and, for each round, what stands after it."""
        texts = [self.response.text]
        for each in self.rounds:
            texts.append(texts[-1] if each.revision is None else each.revision.text)
        return texts


@dataclass(frozen=True)
class Reviser:
    """Who asks whom, and by what."""

    constitution: Constitution
    writer: Model
    feedback: Model
    settings: RevisionsSettings
    num_examples: int
    seed: int

    def respond(self, prompts: Sequence[GroupedPrompt]) -> list[Draft]:
        """First responses by the writer; a prompt to which it has no usable answer is left out."""
        numbers = _occurrences([asked.prompt for asked in prompts])
        seeds = [
            seed_of("response", self.seed, number, prompt_key(asked.prompt))
            for number, asked in zip(numbers, prompts, strict=True)
        ]
        requests = [
            _writing(as_turns(asked.prompt), self.settings.text, seed)
            for asked, seed in zip(prompts, seeds, strict=True)
        ]
        answers = written(self.writer.ask(requests, "responses"))
        return [
            Draft(asked, number, answer, self.writer.name, seed)
            for asked, number, answer, seed in zip(prompts, numbers, answers, seeds, strict=True)
            if answer is not None
        ]

    def revise(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Every draft after all rounds."""
        drafts = list(drafts)
        for number in range(1, self.settings.rounds + 1):
            drafts = self._round(drafts, number)
        return drafts

    def _round(self, drafts: Sequence[Draft], number: int) -> list[Draft]:
        text = self.settings.text
        principles = [self._principle(draft, number) for draft in drafts]
        asked = [
            questions.critique(
                self.constitution, principle, draft.asked.prompt, draft.texts[-1], self.num_examples
            )
            for draft, principle in zip(drafts, principles, strict=True)
        ]
        seeds = [self._seeds(draft, number) for draft in drafts]
        criticizing = [_writing(turns, text, first) for turns, (first, _) in zip(asked, seeds, strict=True)]
        criticized = self.feedback.ask(criticizing, f"critiques, round {number}")
        critiques = [self._usable(each) for each in written(criticized)]
        revising = {
            place: _writing(
                questions.revision(asked[place], found.text, principles[place]), text, seeds[place][1]
            )
            for place, found in enumerate(critiques)
            if found is not None
        }
        answers = self.feedback.ask(list(revising.values()), f"revisions, round {number}")
        revised = dict(zip(revising, answers, strict=True))
        revisions = {n: self._usable(each, whole=True) for n, each in revised.items()}
        return [
            replace(
                draft,
                rounds=(
                    *draft.rounds,
                    Round(
                        number,
                        principles[n].id,
                        *seeds[n],
                        critiques[n],
                        revisions.get(n),
                        self._left_out("critique", criticized[n], critiques[n])
                        or self._left_out("revision", revised.get(n), revisions.get(n)),
                    ),
                ),
            )
            for n, draft in enumerate(drafts)
        ]

    def _usable(self, answer: Answer | None, *, whole: bool = False) -> Written | None:
        """A text that is no refusal; with `whole`, one that was not cut off either."""
        if not isinstance(answer, Written) or not is_text(answer) or self._is_refusal(answer):
            return None
        return answer if answer.is_finished or not whole else None

    def _is_refusal(self, answer: Written) -> bool:
        patterns = self.settings.refusals
        return is_refusal(answer.text, REFUSALS if patterns is None else patterns)

    def _left_out(
        self, what: Literal["critique", "revision"], answer: Answer | None, used: Written | None
    ) -> LeftOut | None:
        """What came, if it is not used."""
        if not isinstance(answer, Written) or used is not None:
            return None
        return LeftOut(what, answer.problem or ("refused" if answer.text else ""), answer)

    def _principle(self, draft: Draft, number: int) -> Principle:
        [principle] = self.constitution.draw(1, Random(seed_of("principle", *self._place(draft, number))))
        return principle

    def _seeds(self, draft: Draft, number: int) -> tuple[int, int]:
        place = self._place(draft, number)
        return seed_of("critique", *place), seed_of("revision", *place)

    def _place(self, draft: Draft, number: int) -> tuple[object, ...]:
        """What tells this round of this draft from every other, whatever other prompts there are."""
        return (self.seed, draft.number, prompt_key(draft.asked.prompt), number)


def given(demonstrations: Sequence[Demonstration], *, group: str) -> list[Draft]:
    """Drafts of responses that somebody else wrote."""
    return [
        Draft(GroupedPrompt(each.prompt, group), number, Written(text=each.completion.strip()), GIVEN, None)
        for number, each in zip(_occurrences([d.prompt for d in demonstrations]), demonstrations, strict=True)
    ]


def demonstrations(
    drafts: Sequence[Draft], settings: RevisionsSettings, annotator: str
) -> list[Demonstration]:
    """The revisions as demonstrations: of all rounds or the last; equal ones of a prompt count once."""
    found: dict[tuple[str, str], Demonstration] = {}
    for draft in drafts:
        kept = [each.revision.text for each in draft.rounds if each.revision is not None]
        for text in kept if settings.keep == "all" else kept[-1:]:
            prompt = draft.asked.prompt
            completion = as_completion(prompt, text)
            demonstration = Demonstration(prompt=prompt, completion=completion, annotator=annotator)
            found.setdefault((prompt_key(prompt), text), demonstration)
    return list(found.values())


def record(draft: Draft, reviser: Reviser, annotator: str) -> dict[str, Any]:
    """A draft as JSON: every text, with what it came from."""
    text = reviser.settings.text.model_dump(mode="json")
    return {
        **to_json(Prompt(prompt=draft.asked.prompt)),
        "group": draft.asked.group,
        "annotator": annotator,
        "response": {**_text(draft.response), "model": draft.model, "seed": draft.seed},
        "rounds": [
            {
                "round": each.number,
                "principle": each.principle,
                "critique": _text(each.critique) | {"seed": each.critique_seed},
                "revision": _text(each.revision) | {"seed": each.revision_seed},
                **_left_out(each.left_out),
            }
            for each in draft.rounds
        ],
        "model": reviser.feedback.name,
        "sampling": text,
    }


def _occurrences(prompts: Sequence[str | Turns]) -> list[int]:
    """How often each prompt has stood there before."""
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        key = prompt_key(prompt)
        numbers.append(seen[key])
        seen[key] += 1
    return numbers


def _text(found: Written | None) -> dict[str, Any]:
    return (
        {"text": None, "logprob": None} if found is None else {"text": found.text, "logprob": found.logprob}
    )


def _left_out(found: LeftOut | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {"left_out": {"what": found.what, "why": found.why, "text": found.said.text}}


def _writing(turns: Turns, settings: TextSettings, seed: int) -> Request:
    return Request(
        messages=turns, max_tokens=settings.max_tokens, temperature=settings.temperature, seed=seed
    )

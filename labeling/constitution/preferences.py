"""The preference stage: every pair of completions, asked about by principles, in both orders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

from labeling.constitution import questions
from labeling.constitution.config import PreferencesSettings
from labeling.constitution.constitution import Constitution, Principle
from labeling.constitution.feedback import (
    Chosen,
    Model,
    Request,
    Written,
    as_completion,
    as_turns,
    chosen,
    seed_of,
    written,
)
from labeling.constitution.opinions import Opinion, probability
from labeling.constitution.prompts import GroupedPrompt
from labeling.store.items import Item
from labeling.store.judgements import ranks_of
from rlhf.data.records import Comparison, Prompt, Ranking, prompt_key, to_json

BOTH_ORDERS = (False, True)


@dataclass(frozen=True)
class PairQuestion:
    """One principle about one pair."""

    item: int
    first: int
    second: int
    principle: Principle


@dataclass(frozen=True)
class PairReply:
    """The reply to it: an answer in each order, and the reasoning before each."""

    question: PairQuestion
    answers: tuple[Chosen | None, Chosen | None]
    reasonings: tuple[Written | None, Written | None]

    @property
    def opinion(self) -> Opinion:
        forward, backward = (None if each is None else each.log_odds for each in self.answers)
        return Opinion(forward, backward)


@dataclass(frozen=True)
class Judged:
    """An item, and what the principles say of its pairs."""

    item: Item
    replies: tuple[PairReply, ...]
    comparisons: tuple[Comparison, ...]
    """Soft: (i, j, probability that i is better); pairs without an answer are left out."""

    @property
    def num_pairs(self) -> int:
        """Pairs that were asked about."""
        return len({(reply.question.first, reply.question.second) for reply in self.replies})

    def ranking(self, annotator: str, *, hard: bool) -> Ranking | None:
        """As a record; None if nothing was decided, or if hard ranks tie all completions."""
        item = self.item
        if not self.comparisons:
            return None
        if not hard:
            return Ranking(
                prompt=item.prompt,
                completions=item.completions,
                comparisons=self.comparisons,
                annotator=annotator,
            )
        ranks = ranks_of(self.comparisons, len(item.completions))
        return Ranking(prompt=item.prompt, completions=item.completions, ranks=ranks, annotator=annotator)


@dataclass(frozen=True)
class Comparer:
    """Who compares, by what."""

    constitution: Constitution
    feedback: Model
    settings: PreferencesSettings
    num_examples: int
    seed: int

    def judge(self, items: Sequence[Item]) -> list[Judged]:
        """Ask about the pairs of all items; which, and by which principles, depends on each item alone."""
        pair_questions = [
            question for number, item in enumerate(items) for question in self._pair_questions(number, item)
        ]
        ordered = [(question, swapped) for question in pair_questions for swapped in BOTH_ORDERS]
        reasonings: list[Written | None] = [None] * len(ordered)
        if self.settings.chain_of_thought:
            reasonings = self._reasonings(items, ordered)
        answers = self._answers(items, ordered, reasonings)
        replies: list[list[PairReply]] = [[] for _ in items]
        for n, question in enumerate(pair_questions):
            pair = slice(2 * n, 2 * n + 2)
            (a, b), (s, t) = answers[pair], reasonings[pair]
            replies[question.item].append(PairReply(question, (a, b), (s, t)))
        return [self._judged(item, found) for item, found in zip(items, replies, strict=True)]

    def _pair_questions(self, number: int, item: Item) -> Iterator[PairQuestion]:
        rng = Random(seed_of("pairs", self.seed, item.key))
        pairs = list(combinations(range(len(item.completions)), 2))
        different = [(i, j) for i, j in pairs if item.completions[i] != item.completions[j]]
        if self.settings.max_pairs is not None and self.settings.max_pairs < len(different):
            different = sorted(rng.sample(different, self.settings.max_pairs))
        for first, second in different:
            for principle in self.constitution.draw(self.settings.principles_per_pair, rng):
                yield PairQuestion(number, first, second, principle)

    def _reasonings(
        self, items: Sequence[Item], ordered: Sequence[tuple[PairQuestion, bool]]
    ) -> list[Written | None]:
        text = self.settings.text
        requests = [
            Request(
                messages=questions.reasoning(
                    self.constitution,
                    question.principle,
                    *self._shown(items, question, swapped),
                    self.num_examples,
                ),
                max_tokens=text.max_tokens,
                temperature=text.temperature,
                seed=self._seed(items, question, swapped),
            )
            for question, swapped in ordered
        ]
        return written(self.feedback.ask(requests, "reasoning"))

    def _answers(
        self,
        items: Sequence[Item],
        ordered: Sequence[tuple[PairQuestion, bool]],
        reasonings: Sequence[Written | None],
    ) -> list[Chosen | None]:
        asked = [
            n for n, each in enumerate(reasonings) if each is not None or not self.settings.chain_of_thought
        ]
        requests = [self._choice(items, *ordered[n], reasonings[n]) for n in asked]
        found = dict(zip(asked, chosen(self.feedback.ask(requests, "comparisons")), strict=True))
        return [found.get(n) for n in range(len(ordered))]

    def _choice(
        self, items: Sequence[Item], question: PairQuestion, swapped: bool, reasoning: Written | None
    ) -> Request:
        prompt, shown = self._shown(items, question, swapped)
        about = (self.constitution, question.principle, prompt, shown, self.num_examples)
        if reasoning is None:
            messages = questions.comparison(*about)
        else:
            messages = questions.answer_after(questions.reasoning(*about), reasoning.text)
        return Request(
            messages=messages, options=questions.OPTIONS, seed=self._seed(items, question, swapped)
        )

    def _shown(
        self, items: Sequence[Item], question: PairQuestion, swapped: bool
    ) -> tuple[Any, tuple[str, str]]:
        item = items[question.item]
        first, second = item.completions[question.first], item.completions[question.second]
        return item.prompt, (second, first) if swapped else (first, second)

    def _seed(self, items: Sequence[Item], question: PairQuestion, swapped: bool) -> int:
        key = items[question.item].key
        return seed_of(
            "compare", self.seed, key, question.first, question.second, question.principle.id, swapped
        )

    def _judged(self, item: Item, replies: Sequence[PairReply]) -> Judged:
        clamp = self.settings.clamp if self.settings.chain_of_thought else 0.0
        pairs: dict[tuple[int, int], list[Opinion]] = {}
        for each in replies:
            pairs.setdefault((each.question.first, each.question.second), []).append(each.opinion)
        decided = {pair: probability(opinions, clamp=clamp) for pair, opinions in pairs.items()}
        comparisons = tuple((i, j, p) for (i, j), p in decided.items() if p is not None)
        return Judged(item, tuple(replies), comparisons)


def write_completions(
    prompts: Sequence[GroupedPrompt], writer: Model, settings: PreferencesSettings, *, seed: int
) -> list[Item]:
    """Several answers of the writer to each prompt; one with fewer than two usable ones is left out."""
    num = settings.completions_per_prompt
    requests = [
        Request(
            messages=as_turns(asked.prompt),
            max_tokens=settings.text.max_tokens,
            temperature=settings.text.temperature,
            seed=seed_of("completion", seed, prompt_key(asked.prompt), n),
        )
        for asked in prompts
        for n in range(num)
    ]
    answers = written(writer.ask(requests, "completions"))
    items = []
    for place, asked in enumerate(prompts):
        texts = [each.text for each in answers[place * num : (place + 1) * num] if each is not None]
        if len(texts) >= 2:
            completions = tuple(as_completion(asked.prompt, text) for text in texts)
            items.append(Item(prompt=asked.prompt, completions=completions, model=writer.name))
    return items


def records(judged: Judged, feedback: Model, annotator: str) -> Iterator[dict[str, Any]]:
    """Every question about an item as JSON, with its answers in both orders."""
    for each in judged.replies:
        opinion, question = each.opinion, each.question
        yield {
            **to_json(Prompt(prompt=judged.item.prompt)),
            "item": judged.item.key,
            "first": question.first,
            "second": question.second,
            "principle": question.principle.id,
            "log_odds": opinion.log_odds,
            "bias": opinion.bias,
            "consistent": opinion.consistent,
            "orders": [_answer(a, t) for a, t in zip(each.answers, each.reasonings, strict=True)],
            "model": feedback.name,
            "annotator": annotator,
        }


def _answer(answer: Chosen | None, reasoning: Written | None) -> dict[str, Any]:
    found: dict[str, Any] = {"reasoning": None if reasoning is None else reasoning.text}
    if answer is None:
        return found | {"logprobs": None}
    return found | {"logprobs": list(answer.logprobs), "mass": answer.mass, "method": answer.method}

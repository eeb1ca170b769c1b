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
    as_turns,
    chosen,
    seed_of,
    written,
)
from labeling.constitution.opinions import Opinion, probability
from labeling.constitution.prompts import Asked
from labeling.store.items import Item
from labeling.store.judgements import ranks_of
from rlhf.data.records import Comparison, Prompt, Ranking, prompt_key, to_json

BOTH_ORDERS = (False, True)


@dataclass(frozen=True)
class Asking:
    """One principle about one pair."""

    item: int
    first: int
    second: int
    principle: Principle


@dataclass(frozen=True)
class Heard:
    """What came of it: an answer in each order, and what was thought before."""

    asking: Asking
    answers: tuple[Chosen | None, Chosen | None]
    thoughts: tuple[Written | None, Written | None]

    @property
    def opinion(self) -> Opinion:
        forward, backward = (None if each is None else each.log_odds for each in self.answers)
        return Opinion(forward, backward)


@dataclass(frozen=True)
class Judged:
    """An item, and what the principles say of its pairs."""

    item: Item
    heard: tuple[Heard, ...]
    comparisons: tuple[Comparison, ...]
    """Soft: (i, j, probability that i is better); pairs without an answer are left out."""

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
        askings = [asking for number, item in enumerate(items) for asking in self._askings(number, item)]
        turned = [(asking, turn) for asking in askings for turn in BOTH_ORDERS]
        thoughts: list[Written | None] = [None] * len(turned)
        if self.settings.chain_of_thought:
            thoughts = self._thoughts(items, turned)
        answers = self._answers(items, turned, thoughts)
        heard: list[list[Heard]] = [[] for _ in items]
        for n, asking in enumerate(askings):
            pair = slice(2 * n, 2 * n + 2)
            (a, b), (s, t) = answers[pair], thoughts[pair]
            heard[asking.item].append(Heard(asking, (a, b), (s, t)))
        return [self._judged(item, found) for item, found in zip(items, heard, strict=True)]

    def _askings(self, number: int, item: Item) -> Iterator[Asking]:
        rng = Random(seed_of("pairs", self.seed, item.key))
        pairs = list(combinations(range(len(item.completions)), 2))
        different = [(i, j) for i, j in pairs if item.completions[i] != item.completions[j]]
        if self.settings.max_pairs is not None and self.settings.max_pairs < len(different):
            different = sorted(rng.sample(different, self.settings.max_pairs))
        for first, second in different:
            for principle in self.constitution.draw(self.settings.principles_per_pair, rng):
                yield Asking(number, first, second, principle)

    def _thoughts(self, items: Sequence[Item], turned: Sequence[tuple[Asking, bool]]) -> list[Written | None]:
        text = self.settings.text
        requests = [
            Request(
                messages=questions.reasoning(
                    self.constitution, asking.principle, *self._shown(items, asking, turn), self.num_examples
                ),
                max_tokens=text.max_tokens,
                temperature=text.temperature,
                seed=self._seed(items, asking, turn),
            )
            for asking, turn in turned
        ]
        return written(self.feedback.ask(requests, "reasoning"))

    def _answers(
        self,
        items: Sequence[Item],
        turned: Sequence[tuple[Asking, bool]],
        thoughts: Sequence[Written | None],
    ) -> list[Chosen | None]:
        asked = [
            n for n, each in enumerate(thoughts) if each is not None or not self.settings.chain_of_thought
        ]
        requests = [self._choice(items, *turned[n], thoughts[n]) for n in asked]
        found = dict(zip(asked, chosen(self.feedback.ask(requests, "comparisons")), strict=True))
        return [found.get(n) for n in range(len(turned))]

    def _choice(self, items: Sequence[Item], asking: Asking, turn: bool, thought: Written | None) -> Request:
        prompt, shown = self._shown(items, asking, turn)
        about = (self.constitution, asking.principle, prompt, shown, self.num_examples)
        if thought is None:
            messages = questions.comparison(*about)
        else:
            messages = questions.answer_after(questions.reasoning(*about), thought.text)
        return Request(messages=messages, options=questions.OPTIONS, seed=self._seed(items, asking, turn))

    def _shown(self, items: Sequence[Item], asking: Asking, turn: bool) -> tuple[Any, tuple[str, str]]:
        item = items[asking.item]
        first, second = item.completions[asking.first], item.completions[asking.second]
        return item.prompt, (second, first) if turn else (first, second)

    def _seed(self, items: Sequence[Item], asking: Asking, turn: bool) -> int:
        key = items[asking.item].key
        return seed_of("compare", self.seed, key, asking.first, asking.second, asking.principle.id, turn)

    def _judged(self, item: Item, heard: Sequence[Heard]) -> Judged:
        clamp = self.settings.clamp if self.settings.chain_of_thought else 0.0
        pairs: dict[tuple[int, int], list[Opinion]] = {}
        for each in heard:
            pairs.setdefault((each.asking.first, each.asking.second), []).append(each.opinion)
        decided = {pair: probability(opinions, clamp=clamp) for pair, opinions in pairs.items()}
        comparisons = tuple((i, j, p) for (i, j), p in decided.items() if p is not None)
        return Judged(item, tuple(heard), comparisons)


def write_completions(
    prompts: Sequence[Asked], writer: Model, settings: PreferencesSettings, *, seed: int
) -> list[Item]:
    """Several answers of the writer to each prompt; one with fewer than two usable ones is left out."""
    num, text = settings.completions_per_prompt, settings.text
    requests = [
        Request(
            messages=as_turns(asked.prompt),
            max_tokens=text.max_tokens,
            temperature=text.temperature,
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
            glue = " " if isinstance(asked.prompt, str) and not asked.prompt[-1:].isspace() else ""
            items.append(
                Item(prompt=asked.prompt, completions=tuple(glue + t for t in texts), model=writer.name)
            )
    return items


def records(judged: Judged, feedback: Model, annotator: str) -> Iterator[dict[str, Any]]:
    """Every question about an item as JSON, with its answers in both orders."""
    for each in judged.heard:
        opinion, asking = each.opinion, each.asking
        yield {
            **to_json(Prompt(prompt=judged.item.prompt)),
            "item": judged.item.key,
            "first": asking.first,
            "second": asking.second,
            "principle": asking.principle.id,
            "log_odds": opinion.log_odds,
            "bias": opinion.bias,
            "consistent": opinion.consistent,
            "orders": [_answer(a, t) for a, t in zip(each.answers, each.thoughts, strict=True)],
            "model": feedback.name,
            "annotator": annotator,
        }


def _answer(answer: Chosen | None, thought: Written | None) -> dict[str, Any]:
    found: dict[str, Any] = {"reasoning": None if thought is None else thought.text}
    if answer is None:
        return found | {"logprobs": None}
    return found | {"logprobs": list(answer.logprobs), "mass": answer.mass, "method": answer.method}

"""Which prompts an iteration samples, and what decides the noise of every response."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Key = tuple[int, int, int]
"""(iteration, prompt, sample): with the seed it determines a response's noise."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts ready for sampling: token ids, and the text that people and scorers see."""

    ids: list[list[int]]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> "PromptSet":
        return PromptSet([self.ids[i] for i in indices], [self.texts[i] for i in indices])


@dataclass(frozen=True)
class Requests:
    """Responses that are wanted: the prompt of each, and the key of its noise."""

    prompts: PromptSet
    keys: list[Key]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Sequence[int]) -> "Requests":
        return Requests(self.prompts.take(rows), [self.keys[row] for row in rows])


@dataclass(frozen=True)
class PromptSchedule:
    """The prompts of every iteration, a function of the seed and the iteration alone.

    They come in a fresh order every time all of them have been used.
    """

    prompts: PromptSet
    rollouts_per_iteration: int
    samples_per_prompt: int
    seed: int

    def of_iteration(self, iteration: int) -> Requests:
        """The responses to sample in an iteration; those to one prompt follow one another."""
        num_prompts = self.rollouts_per_iteration // self.samples_per_prompt
        indices: list[int] = []
        for place in range(iteration * num_prompts, (iteration + 1) * num_prompts):
            indices += [self._prompt_at(place)] * self.samples_per_prompt
        # An iteration that begins a new order may use a prompt twice: its samples are counted on.
        num_samples: Counter[int] = Counter()
        keys: list[Key] = []
        for index in indices:
            keys.append((iteration, index, num_samples[index]))
            num_samples[index] += 1
        return Requests(self.prompts.take(indices), keys)

    def _prompt_at(self, place: int) -> int:
        """Index of the prompt at a place in the order of all iterations."""
        num_uses, place_in_order = divmod(place, len(self.prompts))
        order = np.random.default_rng([self.seed, num_uses]).permutation(len(self.prompts))
        return int(order[place_in_order])

"""In which order the rows of the training data come, and how many of them every process gets."""

from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler


class SeededOrder(Sampler[int]):
    """Every example once an epoch, in an order that (seed, epoch) alone decide.

    Within the examples of one optimizer step, which is a sum and has no order, they are sorted by length: a
    micro-batch then holds examples of like length and little padding. The last `num_dummies` rows are no
    examples: they come last, so that every process has equally many rows.

    `batch_size` is the number of rows in an optimizer step, on all processes together.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int, num_dummies: int = 0) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.num_dummies = num_dummies
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int, *, steps_done: int = 0) -> None:
        """Choose the epoch that is iterated over next, without the rows of its first `steps_done` steps."""
        self.epoch = epoch
        self.steps_done = steps_done

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        num_examples = len(self) - self.num_dummies
        order = np.random.default_rng([self.seed, self.epoch]).permutation(num_examples)
        order = np.concatenate([order, np.arange(num_examples, len(self))])
        for first in range(self.steps_done * self.batch_size, len(order), self.batch_size):
            step = order[first : first + self.batch_size]
            yield from step[np.argsort(-self.lengths[step], kind="stable")].tolist()


def row_lengths(rows: Dataset) -> list[int]:
    """Tokens of every row: of every example, or of every packed row."""
    return [len(ids) for ids in rows["input_ids"]]


def fill_up(rows: Dataset, multiple: int) -> tuple[Dataset, int]:
    """The rows and as many dummies as make their number a multiple of `multiple`; and the number of dummies.

    A dummy is one token that no loss is taken of. Without dummies accelerate would draw examples twice, so
    that all processes have equally many.
    """
    num_dummies = -len(rows) % multiple
    if not num_dummies:
        return rows, 0
    dummy = {"input_ids": [0], "labels": [-100], "seq_lengths": [1]}
    columns = {name: [dummy[name]] * num_dummies for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(columns, features=rows.features)]), num_dummies

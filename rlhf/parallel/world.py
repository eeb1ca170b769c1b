"""The processes of a stage, seen from one of them: which rank it is, and what ranks tell each other.

A stage is one program on every rank. What is small (token ids, scores, log-probabilities, metrics) is whole
on every rank, and every rank computes the same with it, so that the code of one process is also that of many.
Each rank works on its own rows of what is large, and rank 0 alone writes files and prints.
"""

import contextlib
import datetime
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from rlhf import preemption
from rlhf.environment import is_launched, uses_deepspeed
from rlhf.errors import UserError

T = TypeVar("T")

TIMEOUT = datetime.timedelta(hours=6)
"""How long a rank waits for another that works alone. It is the launcher that notices a rank's death."""
_POLL_SECONDS = 0.2
"""The longest pause between two looks whether rank 0 has an outcome."""


class Rank0EndedError(RuntimeError):
    """Rank 0 ended while the others waited for its outcome."""


@dataclass(frozen=True)
class _Outcome:
    """How rank 0's work in `World.run_on_rank0` ended."""

    kind: Literal["result", "refused", "preempted", "ended"]
    value: Any = None
    """The result; or of a `UserError` what, where and fix."""


class World:
    """The processes that work together. Alone, every method is the identity."""

    def __init__(self) -> None:
        environment = os.environ
        launched = is_launched()
        self.is_launched = launched
        self.rank = int(environment["RANK"]) if launched else 0
        self.size = int(environment["WORLD_SIZE"]) if launched else 1
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
        self.zero = stage if uses_deepspeed() else 0
        """DeepSpeed's ZeRO stage; 0: no DeepSpeed."""
        self.device = torch.device("cpu")
        self.gather_weights: Literal["auto", "whole", "layers"] = "auto"
        """How weights that ZeRO-3 shards are gathered outside training: `run.gather`."""
        self._before_collectives: list[Callable[[], None]] = []
        self._num_outcomes = 0

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    # ---- rows -------------------------------------------------------------------------------------

    def shard(self, num_rows: int) -> list[int]:
        """This rank's rows of so many: every size-th. Never empty: a surplus rank repeats another's row."""
        return list(range(self.rank, num_rows, self.size)) or [self.rank % num_rows]

    def unshard(self, own: Sequence[T], num_rows: int) -> list[T]:
        """One value for every row, in order, from those that each rank has for its `shard`."""
        parts = self.gather(list(own))
        return [parts[row % self.size][row // self.size] for row in range(num_rows)]

    def unshard_tensor(self, own: Tensor, num_rows: int) -> Tensor:
        """`unshard` of a tensor's rows; a second dimension is padded with zeros to the longest."""
        if self.size == 1:
            return own
        parts = [part.to(own.device) for part in self.gather(own.detach().cpu())]
        if own.dim() > 1:
            width = max(part.shape[1] for part in parts)
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        return torch.stack([parts[row % self.size][row // self.size] for row in range(num_rows)])

    # ---- collectives ------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        if self.size == 1:
            return [value]
        self._prepare_collective()
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self._object_group)
        return values

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over ranks, by name; bitwise the same on all of them."""
        if self.size == 1:
            return dict(values)
        sums: dict[str, float] = {}
        for part in self.gather(dict(values)):
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather(flag))

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, which alone runs it, on all ranks; also the error that ends it."""
        if self.size == 1:
            return work()
        self._prepare_collective()
        self._num_outcomes += 1
        key = f"rank0-{self._num_outcomes}"
        if not self.is_rank0:
            return self._outcome_of_rank0(key)  # type: ignore[no-any-return]
        outcome = _Outcome("ended")
        try:
            result = work()
            outcome = _Outcome("result", result)
        except UserError as error:
            outcome = _Outcome("refused", (error.what, error.where, error.fix))
            raise
        except preemption.Preempted:
            outcome = _Outcome("preempted")
            raise
        finally:
            self.store.set(key, pickle.dumps(outcome))
        return result

    def _outcome_of_rank0(self, key: str) -> Any:
        """Wait for what rank 0 stores under `key`. A wait inside the store would receive no signal."""
        pause = 0.001
        while not self.store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)
        outcome: _Outcome = pickle.loads(self.store.get(key))
        if outcome.kind == "refused":
            what, where, fix = outcome.value
            raise UserError(what, where=where, fix=fix)
        if outcome.kind == "preempted":
            preemption.stop()
        if outcome.kind == "ended":
            raise Rank0EndedError("rank 0 has ended")
        return outcome.value

    def pad_to_equal(self, parts: list[T], spare: Callable[[], T]) -> list[T]:
        """`parts`, padded with spare ones to the largest number of any rank, where ranks must run alike.

        Under ZeRO-3 every forward and backward pass gathers weights from all ranks.
        """
        if self.zero != 3 or self.size == 1:
            return parts
        missing = max(self.gather(len(parts))) - len(parts)
        return parts + [spare() for _ in range(missing)]

    def claim_once(self, name: str) -> bool:
        """Whether this rank is the first to claim `name`."""
        return self.size == 1 or self.store.add(f"claim-{name}", 1) == 1

    def count_busy(self, is_busy: bool) -> int:
        """How many ranks are still busy: the one collective before which nothing else has to run."""
        number = torch.tensor([int(is_busy)])
        torch.distributed.all_reduce(number, group=self._object_group)
        return int(number)

    @contextlib.contextmanager
    def before_collectives(self, work: Callable[[], None]) -> Iterator[None]:
        """Inside the block `work` runs before any collective of this class.

        Where a forward pass is itself a collective (weights gathered layer by layer), a rank that has
        finished its passes must first join those of the others: else one waits in a gather, the other here.
        """
        self._before_collectives.append(work)
        try:
            yield
        finally:
            self._before_collectives.remove(work)

    @property
    def passes_are_collectives(self) -> bool:
        """Whether a forward pass is itself a collective, so that all of its Python must run in every pass."""
        return bool(self._before_collectives)

    def _prepare_collective(self) -> None:
        for work in self._before_collectives:
            work()

    # ---- how ranks reach each other ---------------------------------------------------------------

    def rendezvous(self) -> None:
        """Find the other ranks."""
        if self.size > 1:
            assert self.store is not None

    @cached_property
    def store(self) -> Any:
        """The key-value store that the launcher keeps for its ranks."""
        store, _, _ = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        store.set_timeout(TIMEOUT)
        return store

    @cached_property
    def _object_group(self) -> Any:
        """The group that Python objects travel in: over the CPU also where tensors go from GPU to GPU."""
        if torch.distributed.get_backend() == "gloo":
            return torch.distributed.group.WORLD
        return torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)


_world = World()


def world() -> World:
    """The processes that this one works with."""
    return _world

"""Clocks of a racer: laps in wall-clock and CPU seconds, optimizer steps, and parts of an iteration."""

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.clock import clock
from benchmarks.trl.jobs import Lap

OTHER = "everything else"


class Parts:
    """Wall-clock seconds by part; time inside an inner part does not count for the outer one."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._since = now()
        self._stack = [OTHER]
        self._seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Charge every call of `owner.name` to `part`; a missing name is an error, not a silence."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return original(*args, **kwargs)

        setattr(owner, name, timed)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        self._charge()
        seconds = dict(self._seconds)
        self._seconds = defaultdict(float)
        return seconds

    def _charge(self) -> None:
        now = self._now()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now


class Laps:
    """Takes the time of every lap, and counts the steps that optimizers really took in it."""

    def __init__(self, device: str = "cpu", *, parts: Parts | None = None) -> None:
        self.laps: list[Lap] = []
        self._now = clock(device)
        self._parts = parts
        self._steps = 0
        self._hook = register_optimizer_step_post_hook(self._count)

    def start(self) -> None:
        """The first lap begins."""
        if self._parts is not None:
            self._parts.take()
        self._steps = 0
        self._wall, self._cpu = self._clocks()

    def lap(self) -> None:
        """A lap ends and the next begins."""
        wall, cpu = self._clocks()
        parts = self._parts.take() if self._parts is not None else {}
        self.laps.append(
            Lap(
                wall_seconds=wall - self._wall,
                cpu_seconds=cpu - self._cpu,
                optimizer_steps=self._steps,
                parts=parts,
            )
        )
        self._steps = 0
        self._wall = wall
        self._cpu = cpu

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside belongs to no lap."""
        wall, cpu = self._clocks()
        yield
        self._wall += time.perf_counter() - wall
        self._cpu += time.process_time() - cpu
        if self._parts is not None:
            self._parts.take()

    def close(self) -> None:
        self._hook.remove()

    def _clocks(self) -> tuple[float, float]:
        return self._now(), time.process_time()

    def _count(self, *args: Any) -> None:
        del args
        self._steps += 1

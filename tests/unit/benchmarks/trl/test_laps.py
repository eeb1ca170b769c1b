import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from benchmarks.trl.laps import OTHER, Laps, Parts


@pytest.fixture
def laps() -> Iterator[Laps]:
    made = Laps()
    yield made
    made.close()


def test_steps_are_counted_by_lap_whatever_the_optimizer(laps: Laps) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizers = [torch.optim.AdamW([weight]), torch.optim.SGD([weight])]
    weight.grad = torch.ones(1)
    optimizers[0].step()  # before the start: does not count
    laps.start()
    for number in (1, 3):
        for _ in range(number):
            optimizers[number % 2].step()
        laps.lap()
    assert [lap.optimizer_steps for lap in laps.laps] == [1, 3]


def test_no_step_is_counted_after_closing() -> None:
    laps = Laps()
    laps.start()
    laps.close()
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight]).step()
    laps.lap()
    assert laps.laps[0].optimizer_steps == 0


def test_sleeping_takes_time_but_no_cpu(laps: Laps) -> None:
    laps.start()
    time.sleep(0.2)
    laps.lap()
    assert laps.laps[0].wall_seconds >= 0.2
    assert laps.laps[0].cpu_seconds < 0.1


def test_a_pause_belongs_to_no_lap(laps: Laps) -> None:
    laps.start()
    began = time.perf_counter()
    laps.lap()
    with laps.paused():
        time.sleep(0.3)
    laps.lap()
    assert laps.laps[1].wall_seconds <= time.perf_counter() - began - 0.3


def test_an_inner_part_does_not_count_for_the_outer_one() -> None:
    clock = SimpleNamespace(now=0.0)

    def advance(seconds: float) -> None:
        clock.now += seconds

    parts = Parts(lambda: clock.now)
    advance(1)
    with parts.part("scoring"):
        advance(2)
        with parts.part("sampling"):
            advance(4)
        advance(8)
    advance(16)
    assert parts.take() == {OTHER: 17, "scoring": 10, "sampling": 4}
    assert parts.take() == {OTHER: 0}


def test_wrapping_what_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError):
        Parts().wrap(SimpleNamespace(), "sample", "sampling")


def test_a_wrapped_function_still_gives_its_result() -> None:
    owner = SimpleNamespace(double=lambda x: 2 * x)
    parts = Parts()
    parts.wrap(owner, "double", "doubling")
    assert owner.double(4) == 8
    assert "doubling" in parts.take()

"""What ranks tell one another, two of them as threads of one process over a real store."""

import datetime
import itertools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from rlhf import preemption
from rlhf.errors import UserError
from rlhf.parallel.failures import is_rank_failure
from rlhf.parallel.world import World
from rlhf.preemption import Preempted


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[World]:
    store = HashStore()
    store.set_timeout(datetime.timedelta(seconds=30))
    teams = []
    for rank in range(2):
        for name, value in (("LOCAL_RANK", rank), ("RANK", rank), ("WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        teams.append(World())
        vars(teams[-1])["store"] = store
    return teams


def outcome(work: Callable[[], Any]) -> Any:
    """What comes of it: a value, or the exception."""
    try:
        return work()
    except BaseException as error:
        return error


def lead(ranks: list[World], work: Callable[[], Any]) -> list[Any]:
    """What comes of `work`, led by rank 0, on each rank."""
    found: list[Any] = [None, None]

    def take_part(rank: int) -> None:
        found[rank] = outcome(lambda: ranks[rank].run_on_rank0(work))

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


def test_one_rank_works_and_all_have_the_result(ranks: list[World]) -> None:
    numbers = itertools.count()
    assert lead(ranks, lambda: next(numbers)) == [0, 0]
    assert lead(ranks, lambda: next(numbers)) == [1, 1]


def test_a_mistake_that_rank_0_finds_is_everybodys(ranks: list[World]) -> None:
    for error in lead(ranks, raising(UserError("full", where="disk", fix="Make room."))):
        assert (type(error), str(error)) == (UserError, "disk: full\n  Make room.")


@pytest.mark.parametrize("error", [AssertionError("ours"), KeyboardInterrupt()])
def test_the_others_learn_that_rank_0_has_ended(ranks: list[World], error: BaseException) -> None:
    first, other = lead(ranks, raising(error))
    assert first is error
    assert is_rank_failure(other)


def test_a_preemption_of_rank_0_is_everybodys(ranks: list[World]) -> None:
    assert [type(error) for error in lead(ranks, raising(Preempted("SIGTERM")))] == [Preempted, Preempted]


def test_a_rank_that_waits_for_rank_0_hears_signals(ranks: list[World]) -> None:
    heard, spoken = threading.Event(), threading.Event()

    def tell_and_speak() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if not heard.wait(20):
            spoken.set()
            ranks[0].run_on_rank0(lambda: None)

    def wait() -> None:
        with preemption.listen():
            threading.Timer(0.5, tell_and_speak).start()
            ranks[1].run_on_rank0(lambda: None)

    with pytest.raises(Preempted):
        wait()
    heard.set()
    assert not spoken.is_set()

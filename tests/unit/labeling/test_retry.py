"""Calls that are made again: how often, after which pauses, and when they are given up."""

import pytest

from labeling.retry import Pauses, retry


class RefusedError(Exception):
    """For now."""


def test_pauses_double_up_to_the_longest() -> None:
    pauses = Pauses(first=0.5, longest=10.0)
    assert [pauses.after(n) for n in range(1, 8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert pauses.after(100_000) == 10.0


def test_a_call_is_made_until_it_goes_through() -> None:
    num_calls = 0
    waited: list[float] = []

    def call() -> str:
        nonlocal num_calls
        num_calls += 1
        if num_calls < 4:
            raise RefusedError
        return "stored"

    pauses = Pauses(first=1.0, longest=60.0)
    assert retry(call, RefusedError, pauses, lambda _, seconds: waited.append(seconds)) == "stored"
    assert (num_calls, waited) == (4, [1.0, 2.0, 4.0])


def test_another_error_ends_it_at_once() -> None:
    def call() -> None:
        raise ValueError("ours")

    def wait(error: RefusedError, seconds: float) -> None:
        raise AssertionError("nothing is to be waited for")

    with pytest.raises(ValueError, match="ours"):
        retry(call, RefusedError, Pauses(1.0, 1.0), wait)


def test_whoever_waits_may_give_up() -> None:
    def call() -> None:
        raise RefusedError("closed")

    def wait(error: RefusedError, seconds: float) -> None:
        raise error

    with pytest.raises(RefusedError, match="closed"):
        retry(call, RefusedError, Pauses(1.0, 1.0), wait)

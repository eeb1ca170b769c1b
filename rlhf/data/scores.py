"""What a scorer returned, as one number for each response: whatever people's functions return, read strictly.

None and NaN mean that a response has no score. True and False count 1 and 0. What is no list of numbers
(text, a mapping, a table) is refused with the place of the first wrong value.
"""

import asyncio
import inspect
import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from numbers import Real
from typing import Any

NO_SCORE = math.nan


class NotScoresError(Exception):
    """What a scorer returned is not one number for each response."""


class Results:
    """Reads what one scorer returns. An async one runs in an event loop that is kept from call to call."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def numbers(self, returned: Any, num_responses: int) -> list[float]:
        """One float for each response.

        Raises:
            NotScoresError: it is something else; besides, whatever an async scorer or a generator raises.
        """
        values = self._values(returned, num_responses)
        if len(values) != num_responses:
            more = "more than " if len(values) > num_responses else ""
            count = num_responses if more else len(values)
            raise NotScoresError(f"{more}{count} scores for {num_responses} responses")
        try:
            return [_number(value, place) for place, value in enumerate(values, start=1)]
        finally:
            for value in values:
                if inspect.iscoroutine(value):
                    value.close()

    def _values(self, returned: Any, num_responses: int) -> list[Any]:
        if inspect.isawaitable(returned):
            returned = self._run(_awaited(returned))
        if inspect.isasyncgen(returned):
            returned = self._run(_collected(returned, num_responses + 1))
        if hasattr(returned, "tolist"):  # an array of numpy, a tensor of torch, a column of pandas
            returned = returned.tolist()
        if isinstance(returned, str | bytes | Mapping | set | frozenset) or not isinstance(
            returned, Iterable
        ):
            raise NotScoresError(f"{_named(returned)} and no list of numbers")
        return list(islice(returned, num_responses + 1))

    def _run(self, work: Any) -> Any:
        if self._runner is None:
            self._runner = asyncio.Runner()
            weakref.finalize(self, self._runner.close)
        return self._runner.run(work)


def mean_of_finite(values: Sequence[float]) -> float:
    """Mean of the scores that are finite; NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def num_not_finite(values: Sequence[float]) -> int:
    return sum(not math.isfinite(value) for value in values)


async def _awaited(returned: Any) -> Any:
    return await returned


async def _collected(returned: Any, at_most: int) -> list[Any]:
    found = []
    async for value in returned:
        found.append(value)
        if len(found) == at_most:
            break
    return found


def _number(value: Any, place: int) -> float:
    """A score as a float; what is no number is refused, also text that reads like one."""
    if value is None:
        return NO_SCORE
    if hasattr(value, "item") and not isinstance(value, Real):  # a scalar of numpy or torch
        value = _scalar(value, place)
    if inspect.iscoroutine(value):
        raise NotScoresError(f"score {place} is a coroutine: await it in the scorer")
    if not isinstance(value, Real | Decimal):
        raise NotScoresError(f"score {place} is {_named(value)} and no number")
    try:
        return float(value)
    except OverflowError:
        raise NotScoresError(f"score {place} is too large") from None


def _scalar(value: Any, place: int) -> Any:
    # What has dimensions is a row of a table, even where it has one column.
    if getattr(value, "ndim", 0) == 0:
        return value.item()
    raise NotScoresError(f"score {place} is {_named(value)} and no number")


def _named(value: Any) -> str:
    shown = repr(value)
    if len(shown) > 60:
        shown = f"{shown[:57]}..."
    return f"{type(value).__name__} {shown}"

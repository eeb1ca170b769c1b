"""A call that fails for a while is made again, after pauses that grow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")
Failure = TypeVar("Failure", bound=Exception)

_MAX_DOUBLINGS = 30
"""More would overflow in the end, and every pause is the longest one long before."""


@dataclass(frozen=True)
class Pauses:
    """Seconds between attempts: the first pause, doubled from failure to failure up to the longest."""

    first: float
    longest: float

    def after(self, num_failures: int) -> float:
        """The pause after so many failures in a row, one or more."""
        doublings = min(num_failures - 1, _MAX_DOUBLINGS)
        return min(self.longest, self.first * 2.0**doublings)


def retry(
    call: Callable[[], Answer],
    failure: type[Failure],
    pauses: Pauses,
    wait: Callable[[Failure, float], None],
) -> Answer:
    """Make a call until it does not raise `failure`, which `wait` receives with the seconds to pause.

    `wait` gives up by raising the failure again. What else the call raises ends it.
    """
    num_failures = 0
    while True:
        try:
            return call()
        except failure as error:
            num_failures += 1
            wait(error, pauses.after(num_failures))

"""Keys that were typed before the item came that they would be taken for."""

import time
from collections.abc import Callable

AHEAD_SECONDS = 0.3
"""Keys that follow one another faster were typed together."""
ANY_TIME = ("submit", "leave", "help", "rows", "page", "escape")
"""Keys that enter nothing: they mean something also while no item is there."""


class TypedAhead:
    """Takes away keys that came too early, with those that were typed together with them.

    Of `1 2 3`, typed in one go while the item was on its way, the first would be lost and the others be taken
    for the wrong answers.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.waiting = True
        """Whether an item is on its way."""
        self._last: float | None = None
        """When the last key was taken away."""

    def takes(self, name: str) -> bool:
        """Whether the key of this name, pressed now, came too early."""
        now = self._clock()
        if self.waiting:
            is_early = name not in ANY_TIME
        else:
            is_early = self._last is not None and now - self._last < AHEAD_SECONDS and name != "leave"
        if is_early:
            self._last = now
        return is_early

"""What becomes of an optimizer step whose loss or gradient is not finite."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf.errors import UserError

MAX_SKIPPED_IN_A_ROW = 3


class NotFiniteError(UserError):
    """Nothing but steps that are not finite. The weights are those from before the first of them."""


class FiniteGuard:
    """Lets finite steps pass, counts the others, and ends a stage in which nothing else comes.

    A step that does not pass must not be taken: the weights stay as they were before it.
    """

    def __init__(self, stage: str, advice: str) -> None:
        self._stage, self._advice = stage, advice
        self.skipped_steps = 0
        self.skipped_in_a_row = 0

    def passes(self, metrics: Iterable[float]) -> bool:
        """Whether a step with these metrics (losses, a gradient's norm) may be taken.

        The step that ends the stage is not counted: resuming from there tries it again.

        Raises:
            NotFiniteError: several steps in a row may not.
        """
        if all(math.isfinite(value) for value in metrics):
            self.skipped_in_a_row = 0
            return True
        if self.skipped_in_a_row + 1 >= MAX_SKIPPED_IN_A_ROW:
            raise NotFiniteError(
                f"{MAX_SKIPPED_IN_A_ROW} optimizer steps in a row had a reward, a loss or a gradient "
                "that is not finite",
                where=self._stage,
                fix=f"{self._advice} Then begin this stage again with CLEAN=1 (`--clean`), or under another "
                "run name (`run.name=...`).",
            )
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        return False

    def state(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with the counts that `state` gave."""
        self.skipped_steps = state["skipped_steps"]
        self.skipped_in_a_row = state["skipped_in_a_row"]

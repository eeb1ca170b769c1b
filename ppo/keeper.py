"""What of a PPO run outlives its process: the state between two iterations, and the best policy so far."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from rlhf import preemption
from rlhf.errors import UserError
from rlhf.parallel.world import world
from rlhf.runs import checkpoints
from rlhf.runs.checkpoints import Best, Checkpoint
from rlhf.runs.finite import first_not_finite
from rlhf.runs.rank_checkpoints import all_rng_tensors, newest_checkpoint, restore_own_rng
from rlhf.runs.stage import StageRun
from rlhf.training.nonfinite import FiniteGuard, NotFiniteError
from rlhf.training.optimizer import Optimization


@dataclass
class RunState:
    """All that one iteration leaves to the next."""

    optimization: Optimization
    guard: FiniteGuard
    kl_coefficient: float
    next_iteration: int = 0


class Keeper:
    """Saves a run at the boundaries between its iterations.

    The last boundary is held in memory, so that it can be saved at any moment of the iteration after it.
    """

    def __init__(self, state: RunState, stage: StageRun, *, keep_checkpoints: int) -> None:
        self._state, self._stage, self._keep = state, stage, keep_checkpoints
        self.best = Best()
        self.evaluation_due = False
        """Whether the evaluation after the last iteration is still to be made: it has failed."""
        self._boundary: Checkpoint | None = None
        self._saved: int | None = None
        self._lock = threading.Lock()

    def mark(self, *, evaluation_due: bool = False) -> None:
        """Copy the state as it is between two iterations, the first of which may lack its evaluation.

        Raises:
            NotFiniteError: it holds a number that is not finite. The copy before it stays.
        """
        state = self._state
        values = {
            "kl_coefficient": state.kl_coefficient,
            "best": asdict(self.best),
            "evaluation_due": evaluation_due,
            **state.guard.state(),
        }
        tensors = state.optimization.tensors() | all_rng_tensors()
        boundary = Checkpoint.of(state.next_iteration, tensors, values)
        if (name := first_not_finite(boundary.tensors, boundary.state)) is not None:
            raise NotFiniteError(
                f"after iteration {state.next_iteration} `{name}` is not finite",
                where="ppo",
                fix="Lower ppo.policy_learning_rate and ppo.value_learning_rate. The state before that "
                "iteration is kept.",
            )
        self._boundary = boundary
        self.evaluation_due = evaluation_due

    def is_best(self, quality: float) -> bool:
        """Whether the policy as it is now, which was just found to have this quality, is the best so far."""
        return self.best.offer(self._state.next_iteration, quality)

    def save(self) -> None:
        """Write the last boundary, unless that has been done; from any thread."""
        with preemption.deferred(), self._lock:
            boundary = self._boundary
            if boundary is None or boundary.step == self._saved or not world().is_rank0:
                return
            checkpoints.save(
                self._stage.folder,
                boundary.step,
                boundary.tensors,
                boundary.state,
                keep=self._keep,
                best=boundary.state["best"]["step"],
            )
            self._saved = boundary.step

    @contextmanager
    def saving_if_stopped(self) -> Iterator[None]:
        """Save the last boundary, whatever ends the block: a signal, a scorer, a full disk, a lost rank.

        The boundary was copied between two iterations, so what failed after it is no part of it. After a
        preemption it is saved also where the main thread hangs inside.
        """
        with preemption.last_resort(self.save):
            try:
                yield
            except BaseException as error:
                self.save()
                if isinstance(error, UserError) and self._saved is not None:
                    saved = (
                        f"ppo: {self._saved} finished iterations are saved; the same command resumes there"
                    )
                    print(saved, file=sys.stderr, flush=True)
                raise

    def restore(self) -> bool:
        """Resume from the newest good checkpoint, if there is one."""
        found = newest_checkpoint(self._stage.folder)
        if found is None:
            return False
        state = self._state
        state.optimization.restore(found.tensors)
        state.guard.restore(found.state)
        state.kl_coefficient = found.state["kl_coefficient"]
        state.next_iteration = found.step
        self.best = Best(**found.state["best"])
        self.evaluation_due = found.state.get("evaluation_due", False)
        self._boundary = found
        self._saved = found.step
        return True

    def restore_rng(self) -> None:
        """Let random numbers continue as they did after the last boundary."""
        assert self._boundary is not None
        restore_own_rng(self._boundary.tensors)

    def choose_best(self) -> int:
        """Put the weights of the best evaluated policy in place; returns its iteration."""
        step = self.best.step
        found = None
        if step is not None and step != self._state.next_iteration:
            found = checkpoints.load(self._stage.folder, step)
        if found is None:
            return self._state.next_iteration
        self._state.optimization.restore(found.tensors)
        return found.step

"""What of a PPO run outlives its process: the state between two iterations, and the best policy so far."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from ppo.evaluate import Evaluation
from rlhf import preemption
from rlhf.parallel.failures import is_rank_failure
from rlhf.parallel.world import world
from rlhf.preemption import Preempted
from rlhf.runs import checkpoints
from rlhf.runs.checkpoints import Best, Checkpoint
from rlhf.runs.rank_checkpoints import all_rng_tensors, newest_checkpoint, restore_own_rng
from rlhf.runs.stage import StageRun
from rlhf.training.nonfinite import NotFiniteError

if TYPE_CHECKING:
    from ppo.train import PPO


class Keeper:
    """Saves a run at the boundaries between its iterations.

    The last boundary is held in memory, so that it can be saved at any moment of the iteration after it.
    """

    def __init__(self, ppo: "PPO", stage: StageRun) -> None:
        self._ppo, self._stage = ppo, stage
        self.best = Best()
        self._boundary: Checkpoint | None = None
        self._saved: int | None = None
        self._lock = threading.Lock()

    def mark(self) -> None:
        """Copy the state as it stands between two iterations."""
        ppo = self._ppo
        tensors = ppo.updater.optimization.tensors()
        state = {
            "kl_coefficient": ppo.kl_coefficient,
            "best": asdict(self.best),
            **ppo.updater.guard.state(),
        }
        self._boundary = Checkpoint.of(ppo.next_iteration, tensors | all_rng_tensors(), state)

    def judge(self, measured: Evaluation) -> bool:
        """Whether the policy that has just been measured is the best so far."""
        return self.best.offer(self._ppo.next_iteration, self._figure(measured))

    def _figure(self, measured: Evaluation) -> float:
        return measured.metrics.get("gold_mean", measured.metrics["reward_mean"])

    def save(self) -> None:
        """Write the last boundary, unless that has been done; from any thread."""
        with preemption.deferred(), self._lock:
            at = self._boundary
            if at is not None and at.step != self._saved and world().is_rank0:
                keep, best = self._ppo.settings.keep_checkpoints, at.state["best"]["step"]
                checkpoints.save(self._stage.folder, at.step, at.tensors, at.state, keep=keep, best=best)
                self._saved = at.step

    @contextmanager
    def saving_if_stopped(self) -> Iterator[None]:
        """Save the last boundary if a preemption, Ctrl-C, a lost rank or steps not finite end the block.

        After a preemption it is saved also where the main thread hangs inside.
        """
        with preemption.last_resort(self.save):
            try:
                yield
            except (Preempted, KeyboardInterrupt, NotFiniteError):
                self.save()
                raise
            except RuntimeError as error:
                if is_rank_failure(error):  # it may have got the signal before us
                    self.save()
                raise

    def restore(self) -> bool:
        """Go on from the newest good checkpoint, if there is one."""
        found = newest_checkpoint(self._stage.folder)
        if found is None:
            return False
        ppo = self._ppo
        ppo.updater.optimization.restore(found.tensors)
        ppo.kl_coefficient = found.state["kl_coefficient"]
        ppo.updater.guard.restore(found.state)
        ppo.next_iteration = self._saved = found.step
        self.best, self._boundary = Best(**found.state["best"]), found
        return True

    def restore_rng(self) -> None:
        """Let random numbers go on as they did after the last boundary."""
        assert self._boundary is not None
        restore_own_rng(self._boundary.tensors)

    def choose_best(self) -> int:
        """Put the weights of the best measured policy in place; returns its iteration."""
        ppo, step = self._ppo, self.best.step
        found = None
        if step is not None and step != ppo.next_iteration:
            found = checkpoints.load(self._stage.folder, step)
        if found is None:
            return ppo.next_iteration
        ppo.updater.optimization.restore(found.tensors)
        return found.step

"""Teams of real processes over gloo, forked from one that has imported all, and what their trainings leave.

Forked, because starting Python with torch, transformers and DeepSpeed takes longer than all that is trained.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rlhf.parallel import world as world_module
from rlhf.parallel.world import World, world
from tests.soak import kill_session

BOUND = 1e-3
"""‖w₁ − w₂‖ ≤ 1e-3 · ‖w₁ − w₀‖, for every tensor: relative to what training has changed."""
HANG_SECONDS = 900


class Case(NamedTuple):
    """A team, and where its training begins."""

    size: int
    zero: int
    """DeepSpeed's ZeRO stage; 0: no DeepSpeed."""
    origin: str | None = None
    """The case whose checkpoint it resumes from."""


# What the forked processes do.


def preload() -> None:
    """Import here, once, what every rank would import for itself when it enters DeepSpeed."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import accelerate
    import deepspeed

    del accelerate, deepspeed


def fork(size: int, zero: int, work: Callable[[], None]) -> None:
    """Run `work` on every rank of a new team, and see that none of them failed."""
    # As under a launcher, the store where ranks meet is the parent's: its port is never free for another.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    running = {os.fork() or _child(rank, size, zero, store.port, work): rank for rank in range(size)}
    failed: dict[int, int] = {}
    while running:
        child, status = os.wait()
        rank = running.pop(child)
        if status and not failed:
            failed[rank] = os.waitstatus_to_exitcode(status)
            for other in running:  # which may wait for it for hours
                os.kill(other, signal.SIGKILL)
    assert not failed, f"ZeRO-{zero}: rank → how it ended: {failed}"


def _child(rank: int, size: int, zero: int, port: int, work: Callable[[], None]) -> int:
    try:
        if zero:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(zero),
            }
        world_module._world = World()
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def switch_reduction_off() -> None:
    """Let every rank keep its own gradients where DeepSpeed (ZeRO-1, 2) would average all ranks'.

    Nothing else is switched off: weights are still gathered, or those that are compared would not be right.
    """
    import deepspeed
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    average = DeepSpeedZeroOptimizer.average_tensor

    def average_alone(*args: Any, **kwargs: Any) -> None:
        def nothing(*args: Any, **kwargs: Any) -> None: ...

        with mock.patch.multiple(deepspeed.comm, all_reduce=nothing, reduce=nothing):
            average(*args, **kwargs)

    DeepSpeedZeroOptimizer.average_tensor = average_alone


def leave(
    out: Path, name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], metrics: dict[str, Any]
) -> None:
    """Write the tensors of before and after, from rank 0, and every rank's figures."""
    if world().is_rank0:
        tensors = {f"before.{key}": value for key, value in before.items()}
        tensors |= {key: value.detach().clone().contiguous() for key, value in after.items()}
        save_file(tensors, out / f"{name}.safetensors")
    (out / f"{name}.rank{world().rank}.json").write_text(json.dumps(metrics))


# What a test reads.


def run_teams(module: str, out: Path, root: Path) -> None:
    """Let a program of teams work through all its cases."""
    program = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", module, str(out)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = program.communicate(timeout=HANG_SECONDS)
    finally:
        kill_session(program.pid)
    assert program.returncode == 0, errors[-5000:]


class Outcome:
    """What the case of a training has left."""

    def __init__(self, out: Path, trained: str, case: str) -> None:
        name = f"{trained}-{case}"
        self.tensors = load_file(out / f"{name}.safetensors")
        ranks = sorted(out.glob(f"{name}.rank*.json"))
        self.of_ranks: list[dict[str, Any]] = [json.loads(path.read_text()) for path in ranks]
        self.metrics = self.of_ranks[0]

    def named(self, start: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)
        }


def distances(one: Outcome, other: Outcome) -> dict[str, float]:
    """‖w₁ − w₂‖ / ‖w₁ − w₀‖ of every tensor: how far the two are apart, in units of what training changed."""
    before, start = one.named("before."), other.named("before.")
    after, others = one.named("weights."), other.named("weights.")
    assert after.keys() == others.keys() == before.keys() == start.keys()
    assert all(torch.equal(value, start[key]) for key, value in before.items())
    moved = {key: torch.linalg.vector_norm(after[key] - before[key]) for key in after}
    assert all(value > 0 for value in moved.values())
    return {key: float(torch.linalg.vector_norm(after[key] - others[key]) / moved[key]) for key in after}

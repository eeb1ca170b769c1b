"""How a stage's process begins: threads, the device, the process group, DeepSpeed."""

import os

import torch
from torch.distributed.distributed_c10d import PrefixStore

from rlhf import optional
from rlhf.errors import UserError
from rlhf.parallel.deepspeed.setup import check_launch, start_deepspeed
from rlhf.parallel.failures import is_rank_failure
from rlhf.parallel.world import TIMEOUT, World, world
from rlhf.settings.groups import Precision, RunSettings


def start_process(
    run: RunSettings, *, max_grad_norm: float | None = None, precision: Precision = "fp32"
) -> World:
    """Set the thread count, choose the device that `run` asks for, and join the other ranks.

    `max_grad_norm` and `precision` are the recipe's, and the launcher's settings must not contradict them.

    Raises:
        UserError: the device does not exist here, or the launcher's settings are others.
    """
    ranks = world()
    ranks.gather_weights = run.gather
    if run.threads:
        torch.set_num_threads(run.threads)
    if ranks.zero:
        optional.check_installed("deepspeed", where=f"ZERO={ranks.zero}", otherwise="leave ZERO and GPUS out")
        check_launch(ranks.zero, max_grad_norm=max_grad_norm, precision=precision)
    elif ranks.size > 1:
        raise UserError(
            f"{ranks.size} processes without DeepSpeed",
            where="launch",
            fix="Give ZERO=1, 2 or 3 (make), or an accelerate config of type DEEPSPEED "
            "(configs/accelerate/ of the repository).",
        )
    join_ranks(_device(run.device))
    return ranks


def join_ranks(device: torch.device) -> None:
    """Take `device` and, if launched, set up what ranks and DeepSpeed communicate through."""
    ranks = world()
    ranks.device = device
    # Before DeepSpeed is imported, which else takes a GPU that is there, whatever `device` is.
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not ranks.is_launched or torch.distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _init_process_group("nccl" if device.type == "cuda" else "gloo")
    if ranks.zero:
        start_deepspeed(device)


def _init_process_group(backend: str) -> None:
    ranks = world()
    try:
        torch.distributed.init_process_group(
            backend,
            store=PrefixStore("ranks", ranks.store),
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=TIMEOUT,
        )
    except RuntimeError as error:
        if is_rank_failure(error):
            raise
        raise UserError(
            f"the processes cannot connect to each other ({str(error).splitlines()[-1]})",
            where="launch",
            fix=f"Name a network interface that there is: {backend.upper()}_SOCKET_IFNAME, or unset it.",
        ) from None


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world().is_launched:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        # Tokens are drawn by sums in float64, which Apple's MPS does not have.
        torch.empty(1, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot use the device: {reason}", where=f"run.device={name}", fix="Try auto or cpu."
        ) from None
    return device

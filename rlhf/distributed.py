"""The only place that knows on what a process runs.

One process on one device for now; ranks, accelerate and DeepSpeed come in here and nowhere else.
"""

import torch

from rlhf.config import RunSettings
from rlhf.errors import UserError


def start_process(run: RunSettings) -> torch.device:
    """Set the thread count and choose the device that `run` asks for.

    Raises:
        UserError: the device does not exist here.
    """
    if run.threads:
        torch.set_num_threads(run.threads)
    name = run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot use the device: {reason}", where=f"run.device={name}", fix="Try auto or cpu."
        ) from None
    return device

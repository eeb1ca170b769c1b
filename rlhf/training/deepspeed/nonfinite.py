"""Steps that are not finite, left out by DeepSpeed: by itself it does so in fp16 alone, for gradients alone.

Its ranks agree with one flag, reduced once a step. What is not finite in a rank's losses goes into that flag
too, and costs no word of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf.parallel.world import world


def skip_what_is_not_finite(engine: Any) -> None:
    """Let `engine` leave out, on all ranks, a step with a loss or a gradient that is not finite on any."""
    inner, backward = engine.optimizer, engine.backward
    note = _look_in_stage_3(inner) if world().zero == 3 else _look_in_stages_1_and_2(inner)

    def backward_and_note(loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        note(~loss.detach().isfinite())
        return backward(loss, *args, **kwargs)

    engine.backward = backward_and_note


def _look_in_stage_3(inner: Any) -> Callable[[Tensor], Any]:
    """Let the step look; returns what enters a finding of our own."""
    update_scale = inner._overflow_check_and_loss_scale_update

    def look_first() -> bool:
        inner.check_overflow()
        return bool(update_scale())

    inner._overflow_check_and_loss_scale_update = look_first
    return lambda found: inner.inf_or_nan_tracker.logical_or_(found.to(inner.inf_or_nan_tracker.device))


def _look_in_stages_1_and_2(inner: Any) -> Callable[[Tensor], Any]:
    """As `_look_in_stage_3`. With the optimizer's state on the CPU, the finding is a plain bool."""
    inner.check_grad_overflow = True
    if inner.cpu_offload:

        def note(found: Tensor) -> None:
            inner.local_overflow = inner.local_overflow or bool(found)

        return note
    look = inner.has_overflow_partitioned_grads_serial
    noted = torch.zeros(1, dtype=torch.bool, device=world().device)

    def look_at_both() -> Tensor:
        found: Tensor = look() | noted
        noted.zero_()
        return found

    inner.has_overflow_partitioned_grads_serial = look_at_both
    return noted.logical_or_

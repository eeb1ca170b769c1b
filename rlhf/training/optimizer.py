"""AdamW over the trained parameters: on one process here, over DeepSpeed in `rlhf.training.deepspeed`.

Losses come already divided by the count of the whole global step, so that gradients of micro-batches, and of
ranks, are summed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rlhf.runs import checkpoints

Named = Mapping[str, nn.Parameter]


class Optimization:
    """The trained parameters by name, their gradients, and the steps that are taken with them."""

    def __init__(
        self,
        groups: Sequence[tuple[Named, float]],
        *,
        max_grad_norm: float,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.named = {name: parameter for group, _ in groups for name, parameter in group.items()}
        self.max_grad_norm = max_grad_norm
        device = next(iter(self.named.values())).device
        self.optimizer = _AdamW(
            [{"params": list(group.values()), "lr": rate} for group, rate in groups],
            eps=eps,
            weight_decay=weight_decay,
            fused=device.type in checkpoints.FUSED_ON,
        )

    @property
    def rate(self) -> float:
        """The first group's learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set every group's learning rate."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those of this step."""
        loss.backward()

    def step(self, metrics: Iterable[float]) -> float:
        """Clip the gradients' norm and take the step, if the norm and all `metrics` are finite.

        Returns the norm before clipping. The gradients are gone in any case, and all ranks decide alike.
        """
        parameters = [parameter for parameter in self.named.values() if parameter.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        if all(map(math.isfinite, [norm, *metrics])):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Weights and AdamW's state by parameter, for a checkpoint: the same whatever the number of ranks.

        All ranks must call it.
        """
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self.named.items()}
        return tensors | checkpoints.optimizer_tensors(self.optimizer, self.named)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Resume from what `tensors` gave, on as many ranks or on another number."""
        for name, parameter in self.named.items():
            parameter.copy_(tensors[f"weights.{name}"])
        checkpoints.restore_optimizer(self.optimizer, self.named, tensors)


class _AdamW(torch.optim.AdamW):
    """AdamW that leaves out groups marked `idle`.

    Without DeepSpeed a parameter that got no gradient is passed over. DeepSpeed gives it a gradient of zeros,
    and the count of steps that corrects the bias of AdamW's moments would run on.
    """

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("idle")]
        try:
            super().step()
        finally:
            self.param_groups = groups

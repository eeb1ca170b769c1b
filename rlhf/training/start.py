"""The optimizer of a stage, on one process or over DeepSpeed, as this process was started."""

from collections.abc import Sequence

from rlhf.model.backbone import Backbone
from rlhf.parallel.world import world
from rlhf.training.optimizer import Named, Optimization


def optimize(
    backbone: Backbone,
    groups: Sequence[tuple[Named, float]],
    *,
    max_grad_norm: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimization:
    """AdamW over groups of (parameters, learning rate) of `backbone`, as this process was started."""
    plain = Optimization(groups, max_grad_norm=max_grad_norm, eps=eps, weight_decay=weight_decay)
    if not world().zero:
        return plain
    from rlhf.training.deepspeed.engine import ZeroOptimization

    return ZeroOptimization(backbone, plain)

"""DeepSpeed, entered through accelerate: ZeRO-1, 2 and 3 (1910.02054) cut optimizer state, gradients and
weights over the ranks.

What DeepSpeed does here is what an optimizer step is: reduce the gradients, clip them, update each rank's
part and gather the weights. The gradients of a step's micro-batches are summed on each rank before that, so
that ranks may have different numbers of them, a step is reduced once, and one that is not finite is dropped
before DeepSpeed has seen it. Only adapters and heads are trained; their gradients are small.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf.parallel.deepspeed.gather import gathered, set_engine
from rlhf.parallel.deepspeed.setup import deepspeed_settings, forget_settings, quiet
from rlhf.parallel.world import world
from rlhf.training.deepspeed.state import ZeroState
from rlhf.training.optimizer import Optimization

if TYPE_CHECKING:
    from rlhf.model.backbone import Backbone


class ZeroOptimization(Optimization):
    """`Optimization` over a DeepSpeed engine: the same steps, with the ranks' gradients summed."""

    def __init__(self, backbone: "Backbone", plain: Optimization) -> None:
        # Not `super().__init__`, which would make a second optimizer: DeepSpeed wraps that of `plain`.
        self.named = plain.named
        self.max_grad_norm = plain.max_grad_norm
        self.optimizer = plain.optimizer
        self._groups = [list(group["params"]) for group in plain.optimizer.param_groups]
        self._sums: dict[str, Tensor] = {}
        self._engine = _prepare(backbone, plain)
        set_engine(backbone, self._engine)
        self._state = ZeroState(self._engine, self.named, self._groups)

    def backward(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(self.named.values()), allow_unused=True)
        for name, gradient in zip(self.named, gradients, strict=True):
            if gradient is not None:
                self._sums[name] = self._sums[name].add_(gradient) if name in self._sums else gradient.clone()

    def step(self, metrics: Iterable[float]) -> float:
        sums, self._sums = self._sums, {}
        # A sum of norms bounds the norm of the sum: if it is finite, so is all that DeepSpeed will compute.
        norms = [float(torch.linalg.vector_norm(gradient)) for gradient in sums.values()]
        states = world().gather((sum(norms), sorted(sums)))
        trained = {name for _, names in states for name in names}
        if not all(map(math.isfinite, [sum(norm for norm, _ in states), *metrics])):
            return math.nan
        is_trained = {id(parameter) for name, parameter in self.named.items() if name in trained}
        for group, parameters in zip(self.optimizer.param_groups, self._groups, strict=True):
            group["idle"] = not any(id(parameter) in is_trained for parameter in parameters)
        self._reduce(sums)
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _reduce(self, sums: Mapping[str, Tensor]) -> None:
        """Hand the gradients to DeepSpeed, which averages over ranks what is to be summed."""
        engine, size = self._engine, world().size
        with gathered(self.named.values()):
            gradients = [
                sums[name] * size if name in sums else torch.zeros_like(parameter)
                for name, parameter in self.named.items()
            ]
            engine.set_gradient_accumulation_boundary(True)
            engine.backward(engine(lambda: _zero(gradients, list(self.named.values()))))

    def tensors(self) -> dict[str, Tensor]:
        return self._state.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._state.restore(tensors)


def _zero(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    zero: Tensor = _Gradients.apply(gradients, *parameters)  # type: ignore[no-untyped-call]
    return zero


class _Gradients(torch.autograd.Function):
    """A zero whose gradients are given: the way of sums that are known into DeepSpeed's reduction."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return None, *ctx.gradients


def _prepare(backbone: "Backbone", plain: Optimization) -> Any:
    """Wrap backbone and optimizer into a DeepSpeed engine, and see that it does what it was told."""
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, DistributedType
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    stage = world().zero
    dtypes = {name: parameter.dtype for name, parameter in plain.named.items()}
    with quiet():
        # Adapters and heads stay whole between steps; only the frozen base is cut.
        sizes = [parameter.numel() for parameter in plain.named.values()]
        settings = deepspeed_settings(
            sum(sizes), max_grad_norm=plain.max_grad_norm, stage3_param_persistence_threshold=max(sizes) + 1
        )
        plugin = DeepSpeedPlugin(hf_ds_config=settings)
        accelerator = Accelerator(deepspeed_plugin=plugin, mixed_precision="no")
        engine, _ = accelerator.prepare(backbone, plain.optimizer)
    forget_settings()
    assert accelerator.distributed_type == DistributedType.DEEPSPEED
    # Passes go through the module and not through the engine, which would take every one for a whole step's:
    # so DeepSpeed's hooks must be on this very module.
    assert engine.module is backbone
    assert type(engine.optimizer) is (DeepSpeedZeroOptimizer_Stage3 if stage == 3 else DeepSpeedZeroOptimizer)
    assert engine.optimizer.optimizer is plain.optimizer, "DeepSpeed has put another optimizer in its place"
    assert engine.zero_optimization_stage() == stage
    assert engine.gradient_clipping() == plain.max_grad_norm
    assert engine.gradient_accumulation_steps() == 1
    assert engine.train_micro_batch_size_per_gpu() == 1
    assert not engine.bfloat16_enabled()
    assert not engine.fp16_enabled()
    assert {name: parameter.dtype for name, parameter in plain.named.items()} == dtypes
    assert set(dtypes.values()) == {torch.float32}
    return engine

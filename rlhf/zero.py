"""DeepSpeed, entered through accelerate: ZeRO-1, 2 and 3 (1910.02054) cut optimizer state, gradients and
weights over the ranks.

What DeepSpeed does here is what an optimizer step is: reduce the gradients, clip them, update each rank's
part and gather the weights. The gradients of a step's micro-batches are summed on each rank before that, so
that ranks may have different numbers of them, a step is reduced once, and one that is not finite is dropped
before DeepSpeed has seen it. Only adapters and heads are trained; their gradients are small.
"""

import contextlib
import functools
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn

from rlhf.config import Precision
from rlhf.distributed import team
from rlhf.errors import UserError
from rlhf.optimization import Optimization

if TYPE_CHECKING:
    from rlhf.backbone import Backbone

T = TypeVar("T")

_MOMENTS = ("exp_avg", "exp_avg_sq")
_engines: "WeakKeyDictionary[Backbone, Any]" = WeakKeyDictionary()


def check_launch(stage: int, *, max_grad_norm: float | None, precision: Precision) -> None:
    """Refuse what the launcher was told and DeepSpeed would follow in silence, against the recipe.

    Raises:
        UserError: another clipping, accumulation or precision than the recipe's; a quantized base and ZeRO-3.
    """
    if stage not in (1, 2, 3):
        raise UserError(f"ZeRO stage {stage}", where="accelerate config", fix="Use 1, 2 or 3.")
    if stage == 3 and precision in ("int8", "nf4"):
        raise UserError(
            f"an {precision} base cannot be cut over ranks: packed weights and their scales belong together",
            where=f"model.precision={precision}, ZERO=3",
            fix="Use ZERO=2 (every rank holds the quantized base), or model.precision=bf16 with ZERO=3.",
        )
    told = os.environ.get
    clipping = told("ACCELERATE_GRADIENT_CLIPPING", "auto")
    for name, value, wanted in (
        ("gradient_clipping", clipping, ["auto", "none"]),
        (
            "gradient_accumulation_steps",
            told("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto"),
            ["auto", "1"],
        ),
        ("mixed_precision", told("ACCELERATE_MIXED_PRECISION", "no"), ["no"]),
        ("deepspeed_config_file", told("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"), ["none"]),
    ):
        is_same_norm = name == "gradient_clipping" and _is_number(value, max_grad_norm)
        if value.lower() not in wanted and not is_same_norm:
            raise UserError(
                f"the launcher says `{name}: {value}`, and that is for the recipe to say",
                where="accelerate config",
                fix=f"Leave `{name}` out of it. The recipe has max_grad_norm, batch_size, micro_batch_* and "
                "model.precision; configs/accelerate/ has files that agree.",
            )


def _is_number(text: str, number: float | None) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return False


def start_deepspeed(device: torch.device) -> None:
    """Let accelerate and DeepSpeed take over the process group that there is."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # accelerate refuses its own config's settings beside ours for DeepSpeed, which hold them.
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    warnings.filterwarnings(
        "ignore", message=r".*torch\.distributed\.\w+_tensor.* is deprecated", category=FutureWarning
    )
    warnings.filterwarnings("ignore", message="No device id is provided via")
    with _quiet():
        import deepspeed
        from accelerate import PartialState

        # On a CPU DeepSpeed would compile an operator for shared memory at its first start, which needs a
        # compiler, and a process that is killed meanwhile leaves a lock that all later ones wait for.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        PartialState(backend="gloo" if device.type == "cpu" else "nccl")


class ZeroOptimization(Optimization):
    """`Optimization` over a DeepSpeed engine: the same steps, with the ranks' gradients summed."""

    def __init__(self, backbone: "Backbone", plain: Optimization) -> None:
        self.named, self.max_grad_norm, self.optimizer = plain.named, plain.max_grad_norm, plain.optimizer
        self._groups = [list(group["params"]) for group in plain.optimizer.param_groups]
        self._backbone = backbone
        self._sums: dict[str, Tensor] = {}
        self._engine = _prepare(backbone, plain)
        _engines[backbone] = self._engine
        self._make_states()

    def forward(self, work: Callable[[], T]) -> T:
        # Through the root module, whose hooks tell ZeRO-3 where a pass begins. Not through the engine, which
        # would take every backward pass for a whole step's.
        return cast(T, self._engine.module(work))

    def backward(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(self.named.values()), allow_unused=True)
        for name, gradient in zip(self.named, gradients, strict=True):
            if gradient is not None:
                self._sums[name] = self._sums[name].add_(gradient) if name in self._sums else gradient.clone()

    def step(self, figures: Iterable[float]) -> float:
        sums, self._sums = self._sums, {}
        # A sum of norms bounds the norm of the sum: if it is finite, so is all that DeepSpeed will compute.
        norms = [float(torch.linalg.vector_norm(gradient)) for gradient in sums.values()]
        states = team().gather((sum(norms), sorted(sums)))
        trained = {name for _, names in states for name in names}
        if not all(map(math.isfinite, [sum(norm for norm, _ in states), *figures])):
            return math.nan
        is_trained = {id(parameter) for name, parameter in self.named.items() if name in trained}
        for group, parameters in zip(self.optimizer.param_groups, self._groups, strict=True):
            group["idle"] = not any(id(parameter) in is_trained for parameter in parameters)
        self._reduce(sums)
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _reduce(self, sums: Mapping[str, Tensor]) -> None:
        """Hand the gradients to DeepSpeed, which averages over ranks what is to be summed."""
        engine, size = self._engine, team().size
        with self.here():
            gradients = [
                sums[name] * size if name in sums else torch.zeros_like(parameter)
                for name, parameter in self.named.items()
            ]
            engine.set_gradient_accumulation_boundary(True)
            engine.backward(engine(lambda: _zero(gradients, list(self.named.values()))))

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Inside the block the trained parameters are whole on every rank."""
        with _gathered(self.named.values(), writer=0):
            yield

    def tensors(self) -> dict[str, Tensor]:
        return self._mirror().tensors()

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        mirror = self._mirror()
        mirror.restore(tensors)
        with self.here():
            for name, parameter in self.named.items():
                parameter.copy_(mirror.named[name])
        for name, parameter in self.named.items():
            self._set(parameter, None, mirror.named[name])
            state = mirror.optimizer.state.get(mirror.named[name], {})
            for key in _MOMENTS:
                self._set(parameter, key, state.get(key, torch.zeros_like(mirror.named[name])))
        for ours, theirs, flat in zip(
            self.optimizer.param_groups, mirror.optimizer.param_groups, self._flats(), strict=True
        ):
            ours.update({key: value for key, value in theirs.items() if key != "params"})
            steps = [
                float(mirror.optimizer.state[p]["step"])
                for p in theirs["params"]
                if p in mirror.optimizer.state
            ]
            for part in flat:
                self.optimizer.state[part]["step"].fill_(max(steps, default=0.0))

    def _mirror(self) -> Optimization:
        """The same training as one process has it, without DeepSpeed."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole = {name: safe_get_full_fp32_param(parameter) for name, parameter in self.named.items()}
        named = {name: nn.Parameter(value.clone()) for name, value in whole.items()}
        names = {id(parameter): name for name, parameter in self.named.items()}
        groups = [({names[id(p)]: named[names[id(p)]] for p in group}, 0.0) for group in self._groups]
        mirror = Optimization(groups, max_grad_norm=self.max_grad_norm)
        for ours, theirs, flat, group in zip(
            self.optimizer.param_groups,
            mirror.optimizer.param_groups,
            self._flats(),
            self._groups,
            strict=True,
        ):
            theirs.update({key: value for key, value in ours.items() if key not in ("params", "idle")})
            step = self.optimizer.state[flat[0]]["step"]
            for name in (names[id(parameter)] for parameter in group):
                moments = {
                    key: safe_get_full_optimizer_state(self.named[name], key).clone() for key in _MOMENTS
                }
                if float(step):
                    mirror.optimizer.state[named[name]] = {"step": step.clone(), **moments}
        return mirror

    def _flats(self) -> list[list[Tensor]]:
        """This rank's parts of the weights, for each group of parameters, as AdamW sees them."""
        inner = self._engine.optimizer
        if team().zero < 3:
            return [[part] for part in inner.single_partition_of_fp32_groups]
        flats: list[list[Tensor]] = [[] for _ in self._groups]
        for number, part in enumerate(inner.fp32_partitioned_groups_flat):
            flats[inner.sub_group_to_group_id[number]].append(part)
        return flats

    def _make_states(self) -> None:
        """Begin AdamW's state, as it would at its first step, so that it can be read and set from now on."""
        for flat in self._flats():
            for part in flat:
                zeros = {key: torch.zeros_like(part) for key in _MOMENTS}
                self.optimizer.state[part] = {"step": torch.zeros((), device=part.device), **zeros}
        if team().zero < 3:
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Set a parameter's master weights, or the moment `key`."""
        from deepspeed import utils

        if team().zero < 3:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        size = parameter.partition_numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, size * team().size - value.numel()))
        own = padded[size * team().rank : size * (team().rank + 1)]
        if key is None:
            utils.safe_set_local_fp32_param(parameter, own)
        else:
            utils.safe_set_local_optimizer_state(parameter, own, key)


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

    stage = team().zero
    dtypes = {name: parameter.dtype for name, parameter in plain.named.items()}
    with _quiet():
        # Adapters and heads stay whole between steps; only the frozen base is cut.
        largest = max(parameter.numel() for parameter in plain.named.values())
        settings = deepspeed_settings(
            max_grad_norm=plain.max_grad_norm, stage3_param_persistence_threshold=largest + 1
        )
        plugin = DeepSpeedPlugin(hf_ds_config=settings)
        accelerator = Accelerator(deepspeed_plugin=plugin, mixed_precision="no")
        engine, _ = accelerator.prepare(backbone, plain.optimizer)
    _forget_settings()
    assert accelerator.distributed_type == DistributedType.DEEPSPEED
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


def deepspeed_settings(
    *, micro_batch_rows: int = 1, accumulation: int = 1, max_grad_norm: float, **more: Any
) -> dict[str, Any]:
    """DeepSpeed's settings: all that it, accelerate or a `Trainer` would choose by itself is said here.

    `more` are settings of ZeRO.
    """
    told = os.environ.get
    return {
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": {
            "stage": team().zero,
            "offload_optimizer": {"device": told("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")},
            "offload_param": {"device": told("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")},
            "stage3_allgather_sequential": _one_by_one(),
            **more,
        },
    }


def _one_by_one() -> bool:
    """Whether weights are gathered one after the other: over gloo.

    DeepSpeed 0.19 starts many gatherings together and waits for the last. NCCL has then done the others; gloo
    may not have, and layers would now and then run on weights that have not arrived.
    """
    return team().device.type == "cpu"


@contextlib.contextmanager
def partitioned_load(precision: Precision) -> Iterator[None]:
    """Inside the block transformers makes and loads models in parts, of the type that `precision` names."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_allgather_sequential": _one_by_one()},
        # Says what type the parts have; without it they would be fp32 whatever is loaded.
        "bf16": {"enabled": precision == "bf16"},
    }
    config = HfDeepSpeedConfig(settings)  # transformers keeps only a weak reference
    try:
        with _quiet():
            yield
    finally:
        del config
        _forget_settings()


def _forget_settings() -> None:
    """From here on transformers loads models whole again: the merged copy of a policy, for one."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


@contextlib.contextmanager
def _gathered(parameters: Iterable[nn.Parameter], *, writer: int | None = None) -> Iterator[None]:
    """Inside the block the parameters are whole, those that are cut at all; what `writer` writes is kept."""
    import deepspeed

    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(cut, modifier_rank=writer):
        yield


_depth = 0


@contextlib.contextmanager
def gathering(backbone: "Backbone") -> Iterator[None]:
    """Inside the block forward passes find their weights and ZeRO-3's hooks are off; blocks may nest.

    All weights are gathered once, or a layer's whenever it runs: `run.gather`.
    """
    global _depth
    _depth += 1
    try:
        if _depth > 1:
            yield
            return
        with _without_hooks(_engines.get(backbone)):
            once = not backbone.trunk.layers or _fit(backbone)
            with _gathered(backbone.parameters()) if once else _layer_by_layer(backbone):
                yield
    finally:
        _depth -= 1


def _fit(backbone: "Backbone") -> bool:
    """Whether to gather all weights at once: as told, or if they take half of what is free on every rank."""
    ours = team()
    if ours.gathering != "auto":
        return ours.gathering == "whole"
    if ours.device.type == "cuda":
        free = torch.cuda.mem_get_info(ours.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", ours.size))
    needed = sum(getattr(p, "ds_numel", 0) * p.element_size() for p in backbone.parameters())
    return all(ours.gather(2 * needed <= free))


@contextlib.contextmanager
def _layer_by_layer(backbone: "Backbone") -> Iterator[None]:
    """Inside the block a decoder layer's base weights are gathered when it runs, all others all the time.

    A gathering needs all ranks. So every rank runs passes until all have run theirs: a rank that has finished
    (a longer response elsewhere, more micro-batches) gathers along, and computes nothing, before ranks talk.
    """
    layers = backbone.trunk.layers
    weights = [[p for name, p in layer.named_parameters() if ".lora_" not in name] for layer in layers]
    in_layers = {id(parameter) for layer in weights for parameter in layer}
    open_layers: dict[int, contextlib.ExitStack] = {}

    def before(number: int, layer: nn.Module, inputs: Any) -> None:
        del layer, inputs
        if number == 0:
            team().num_at_work(True)
        open_layers[number] = contextlib.ExitStack()
        open_layers[number].enter_context(_gathered(weights[number]))

    def after(number: int, layer: nn.Module, inputs: Any, output: Any) -> None:
        del layer, inputs, output
        open_layers.pop(number).close()

    def catch_up() -> None:
        while team().num_at_work(False):
            for layer in weights:
                with _gathered(layer):
                    pass

    with contextlib.ExitStack() as stack:
        stack.enter_context(_gathered(p for p in backbone.parameters() if id(p) not in in_layers))
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(functools.partial(before, number)).remove)
            stack.callback(layer.register_forward_hook(functools.partial(after, number)).remove)
        backbone.fused.enabled, team().catch_up = False, catch_up
        try:
            yield
            catch_up()
        finally:
            backbone.fused.enabled, team().catch_up = True, lambda: None


@contextlib.contextmanager
def _without_hooks(engine: Any) -> Iterator[None]:
    """Take ZeRO-3's hooks off a model, which would gather and release weights at every layer."""
    if engine is None:
        yield
        return
    offload = engine.optimizer.parameter_offload
    for parameter in engine.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in [*offload.forward_hooks, *offload.backward_hooks]:
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        coordinator = offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()
        offload._register_deepspeed_module(offload.module)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep DeepSpeed's and accelerate's own words to warnings."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""Weights that ZeRO-3 has sharded over ranks: loaded sharded, and gathered outside training."""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

from rlhf.parallel.deepspeed.setup import forget_settings, loading_settings, quiet
from rlhf.parallel.world import world
from rlhf.settings.groups import Precision


class _Process:
    """What `gathering` has to know of this process, whichever model it is called with."""

    def __init__(self) -> None:
        self.is_gathering = False
        self.engines: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
        """DeepSpeed's engine of each model that is being trained. The models cannot hold theirs: an engine is
        a module that contains the model."""


_process = _Process()


@contextlib.contextmanager
def sharded_load(precision: Precision) -> Iterator[None]:
    """Inside the block transformers makes and loads models sharded, of the type that `precision` names."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(loading_settings(precision))  # transformers keeps only a weak reference
    try:
        with quiet():
            yield
    finally:
        del config
        forget_settings()


def set_engine(model: nn.Module, engine: Any) -> None:
    """Say which of DeepSpeed's engines trains `model`, whose hooks `gathering` takes off; None: none does."""
    _process.engines[model] = engine


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, writer: int | None = None) -> Iterator[None]:
    """Inside the block the parameters are whole; what the rank `writer` writes into them is kept."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=writer):
        yield


@contextlib.contextmanager
def gathering(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block forward passes find their weights and ZeRO-3's hooks are off; blocks may nest.

    All weights are gathered once, or each of the decoder's `layers` whenever it runs: `run.gather`. In that
    case weights come and go by hooks on the layers, from which packed layers see that they cannot run.
    """
    if _process.is_gathering:
        yield
        return
    _process.is_gathering = True
    try:
        with _without_hooks(_process.engines.get(model)):
            once = not layers or _fit(model)
            with gathered(model.parameters()) if once else _layer_by_layer(model, layers):
                yield
    finally:
        _process.is_gathering = False


def _fit(model: nn.Module) -> bool:
    """Whether to gather all weights at once: as told, or if they take half of what is free on every rank."""
    ours = world()
    if ours.gather_weights != "auto":
        return ours.gather_weights == "whole"
    if ours.device.type == "cuda":
        unused = torch.cuda.memory_reserved(ours.device) - torch.cuda.memory_allocated(ours.device)
        free = torch.cuda.mem_get_info(ours.device)[0] + unused
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", ours.size))
    needed = sum(getattr(p, "ds_numel", 0) * p.element_size() for p in model.parameters())
    return all(ours.gather(2 * needed <= free))


@contextlib.contextmanager
def _layer_by_layer(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block a decoder layer's base weights are gathered when it runs, all others all the time.

    A gather needs all ranks, and ranks run different numbers of passes: a longer response here, more
    micro-batches there. So a rank that has finished joins the gathers of the others, and computes nothing,
    until all have finished; it does so before any other collective, which would else meet a gather.
    """
    weights = [[p for name, p in layer.named_parameters() if ".lora_" not in name] for layer in layers]
    in_layers = {id(parameter) for layer in weights for parameter in layer}
    open_layers: dict[int, contextlib.ExitStack] = {}

    def before(number: int, layer: nn.Module, inputs: Any) -> None:
        del layer, inputs
        if number == 0:  # a pass begins: its layers' gathers are those that finished ranks join
            world().count_busy(True)
        open_layers[number] = contextlib.ExitStack()
        open_layers[number].enter_context(gathered(weights[number]))

    def after(number: int, layer: nn.Module, inputs: Any, output: Any) -> None:
        del layer, inputs, output
        open_layers.pop(number).close()

    def catch_up() -> None:
        while world().count_busy(False):
            for layer in weights:
                with gathered(layer):
                    pass

    with contextlib.ExitStack() as stack:
        stack.enter_context(gathered(p for p in model.parameters() if id(p) not in in_layers))
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(functools.partial(before, number)).remove)
            stack.callback(layer.register_forward_hook(functools.partial(after, number)).remove)
        stack.enter_context(world().before_collectives(catch_up))
        yield
        catch_up()


@contextlib.contextmanager
def _without_hooks(engine: Any) -> Iterator[None]:
    """Take ZeRO-3's hooks off a model, which would gather and release weights at every layer."""
    if engine is None:
        yield
        return
    offload = engine.optimizer.parameter_offload
    # DeepSpeed refuses to release a weight that a module of an earlier pass is still noted to use.
    for parameter in engine.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in [*offload.forward_hooks, *offload.backward_hooks]:
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        # DeepSpeed prefetches in the order of modules that it has recorded. New hooks begin a new record.
        coordinator = offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()
        offload._register_deepspeed_module(offload.module)

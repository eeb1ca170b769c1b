"""Weights that ZeRO-3 has cut over ranks: loaded in parts, and brought together outside training."""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

from rlhf.parallel.deepspeed.setup import forget_settings, loading_settings, quiet
from rlhf.parallel.world import world
from rlhf.settings.groups import Precision

_depth = 0
_engines: "WeakKeyDictionary[nn.Module, Any]" = WeakKeyDictionary()


@contextlib.contextmanager
def partitioned_load(precision: Precision) -> Iterator[None]:
    """Inside the block transformers makes and loads models in parts, of the type that `precision` names."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(loading_settings(precision))  # transformers keeps only a weak reference
    try:
        with quiet():
            yield
    finally:
        del config
        forget_settings()


def trained_by(model: nn.Module, engine: Any) -> None:
    """While `gathering` lasts, the hooks of DeepSpeed's `engine` are off `model`; None: there are none."""
    _engines[model] = engine


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, writer: int | None = None) -> Iterator[None]:
    """Inside the block the parameters are whole, those that are cut at all; what `writer` writes is kept."""
    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not cut:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(cut, modifier_rank=writer):
        yield


@contextlib.contextmanager
def gathering(
    model: nn.Module,
    layers: Sequence[nn.Module],
    by_layer: AbstractContextManager[None] = contextlib.nullcontext(),  # noqa: B008
) -> Iterator[None]:
    """Inside the block forward passes find their weights and ZeRO-3's hooks are off; blocks may nest.

    All weights are gathered once, or each of the decoder's `layers` whenever it runs: `run.gather`. In
    that case `by_layer` is entered too: what cannot run on weights that come and go, it switches off.
    """
    global _depth
    _depth += 1
    try:
        if _depth > 1:
            yield
            return
        with _without_hooks(_engines.get(model)):
            once = not layers or _fit(model)
            with gathered(model.parameters()) if once else _layer_by_layer(model, layers, by_layer):
                yield
    finally:
        _depth -= 1


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
def _layer_by_layer(
    model: nn.Module, layers: Sequence[nn.Module], by_layer: AbstractContextManager[None]
) -> Iterator[None]:
    """Inside the block a decoder layer's base weights are gathered when it runs, all others all the time.

    A gathering needs all ranks. So every rank runs passes until all have run theirs: a rank that has finished
    (a longer response elsewhere, more micro-batches) gathers along, and computes nothing, before ranks talk.
    """
    weights = [[p for name, p in layer.named_parameters() if ".lora_" not in name] for layer in layers]
    in_layers = {id(parameter) for layer in weights for parameter in layer}
    open_layers: dict[int, contextlib.ExitStack] = {}

    def before(number: int, layer: nn.Module, inputs: Any) -> None:
        del layer, inputs
        if number == 0:
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
        stack.enter_context(by_layer)
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

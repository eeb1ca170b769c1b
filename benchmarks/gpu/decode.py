"""Tokens a second of decoding, next to what the device's memory bandwidth allows.

A decoding step cannot be faster than it can read all weights and the keys and values of every row's tokens
so far, once. The bandwidth is measured here too, by copying a large block on the device.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.clock import clock
from benchmarks.gpu.models import ppo_settings, random_base, random_prompts
from benchmarks.gpu.out_of_memory import is_out_of_memory
from benchmarks.gpu.plan import Case, LlamaShape
from benchmarks.gpu.swaps import counted_replays
from ppo.models import POLICY
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.sampling.engine import sample

_COPY_BYTES = {"cuda": 2**32, "cpu": 2**26}
_NUM_COPIES = 10
_WARM_STEPS = 20
"""Enough for a captured graph, so that what runs but once has run."""


def run(case: Case) -> dict[str, Any]:
    """All batch sizes, by the base alone and with the policy's adapter, up to the first that does not fit."""
    bandwidth = copy_bandwidth(case.device)
    backbone = random_base(case.shape, case.precision, device=case.device, seed=case.seed)
    adapter = ppo_settings(case).lora
    backbone.add_adapter(POLICY, adapter, seed=case.seed)
    adapter_bytes = sum(4 * p.numel() for p in backbone.adapter_parameters(POLICY).values())
    cells: list[dict[str, Any]] = []
    for batch in case.batches:
        try:
            for role in (REFERENCE, POLICY):
                floor = floor_seconds(
                    case.shape,
                    batch=batch,
                    context_tokens=case.workload.prompt_tokens + case.workload.max_response_tokens / 2,
                    bytes_per_number=backbone.model.dtype.itemsize,
                    adapter_bytes=adapter_bytes if role == POLICY else 0,
                    bandwidth=bandwidth,
                )
                cells.append({**measure(backbone, case, batch, role=role), "floor_seconds_per_step": floor})
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            cells.append({"batch": batch, "role": role, "error": str(error).splitlines()[0]})
            break
    return {
        "bandwidth_bytes_per_second": bandwidth,
        "parameters": case.shape.num_parameters,
        "step_parameters": case.shape.num_step_parameters,
        "adapter_bytes": adapter_bytes,
        "prompt_tokens": case.workload.prompt_tokens,
        "response_tokens": case.workload.max_response_tokens,
        "cells": cells,
    }


def floor_seconds(
    shape: LlamaShape,
    *,
    batch: int,
    context_tokens: float,
    bytes_per_number: int,
    adapter_bytes: int,
    bandwidth: float,
) -> float:
    """Seconds in which the memory delivers what a step must read: weights, and each row's keys and values."""
    weights = shape.num_step_parameters * bytes_per_number + adapter_bytes
    cached = batch * context_tokens * shape.kv_bytes_per_token(bytes_per_number)
    return (weights + cached) / bandwidth


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of the fastest of several copies of a large block."""
    source = torch.zeros(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    fastest = min(seconds_of(lambda: target.copy_(source), device) for _ in range(_NUM_COPIES))
    return 2 * source.numel() / fastest


def measure(backbone: Backbone, case: Case, batch: int, *, role: str) -> dict[str, Any]:
    """Median times of sampling `batch` responses of full length, and of their prompts alone."""
    prompts = random_prompts(case.shape, [case.workload.prompt_tokens] * batch, seed=batch).ids
    settings = ppo_settings(case).sampling.model_copy(update={"batch_size": batch})

    def draw(num_tokens: int) -> None:
        limited = settings.model_copy(update={"max_response_tokens": num_tokens})
        keys = [(0, row, 0) for row in range(batch)]
        sample(backbone, prompts, role=role, settings=limited, keys=keys, seed=case.seed)

    length = case.workload.max_response_tokens
    draw(min(_WARM_STEPS, length))
    first = median(seconds_of(lambda: draw(1), case.device) for _ in range(case.num_laps))
    with counted_replays() as replays:
        whole = median(seconds_of(lambda: draw(length), case.device) for _ in range(case.num_laps))
    return {
        "batch": batch,
        "role": role,
        "seconds": whole,
        "first_token_seconds": first,
        "seconds_per_step": (whole - first) / (length - 1),
        "tokens_per_second": batch * length / whole,
        "captured": replays[0] > 0,
    }


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Wall-clock seconds until `work` has ended on the device."""
    now = clock(device)
    started = now()
    work()
    return now() - started

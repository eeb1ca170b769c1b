"""What a measurement swaps while it runs, and puts back: to count, to take another path."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from rlhf.model.backbone import Backbone


@contextlib.contextmanager
def swapped(owner: Any, name: str, value: object) -> Iterator[None]:
    """Inside the block `owner.name` is `value`."""
    usual = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, usual)


@contextlib.contextmanager
def counted_replays() -> Iterator[list[int]]:
    """A list whose one number counts the captured graphs that are replayed inside the block."""
    count = [0]
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        count[0] += 1
        replay(graph)

    with swapped(torch.cuda.CUDAGraph, "replay", counted):
        yield count


@contextlib.contextmanager
def uncaptured() -> Iterator[None]:
    """Inside the block no graph can be captured, and the sampler's steps run one kernel at a time."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("left out, to compare with")

    with swapped(torch.cuda, "graph", refuse):
        yield


@contextlib.contextmanager
def plain_path(backbone: Backbone) -> Iterator[None]:
    """Inside the block the sampler decodes batch after batch with transformers' own cache."""
    assert backbone.has_plain_cache
    with swapped(backbone, "has_plain_cache", False):
        yield

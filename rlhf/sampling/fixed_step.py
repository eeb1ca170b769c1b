"""Decoding steps of one fixed shape, which CUDA can capture once and replay.

A decoding step is hundreds of small kernels, and on a fast device starting them one by one takes longer
than they run. A captured graph starts all of them at once. It replays the same kernels on the same memory,
so every shape and every address must stay: nothing grows, and what changes is written into tensors that are
already there.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.settings.groups import SamplingSettings

_MIN_STEPS_TO_CAPTURE = 16
"""A capture takes as long as a few steps."""
_WARM_UPS = 2


def fixed_shapes_pay(device: torch.device, settings: SamplingSettings) -> bool:
    """Whether to decode in steps of one shape: where they are captured, from a few steps on.

    Elsewhere they cost more, because attention then reads all columns and not only those in use.
    """
    return device.type == "cuda" and settings.max_response_tokens >= _MIN_STEPS_TO_CAPTURE


class FixedStep:
    """A step that CUDA captures when it is first run, and then replays; elsewhere it is run as it is."""

    def __init__(self, device: torch.device) -> None:
        self._can_capture = device.type == "cuda"
        self._captured: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def __call__(self, run: Callable[[], Tensor]) -> Tensor:
        """What `run` returns, which reads and writes the same tensors in every call.

        It is given each time and not kept: `run` belongs to the decoder that holds this step, and a circle
        would keep the decoder's cache in memory after the last token.
        """
        if self._can_capture and self._captured is None:
            self._captured = _capture(run)
            self._can_capture = self._captured is not None
        if self._captured is None:
            return run()
        graph, output = self._captured
        graph.replay()
        return output


def _capture(run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
    """The captured step and where its output will be, or None if `run` does what a graph cannot hold."""
    # Kernels choose their algorithms when they first run, which must be over before the capture; on a side
    # stream, as torch asks for, because the capture is on one as well.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            output = run()
    except RuntimeError as error:
        print(f"sampling: this model's steps cannot be captured, and run as they are ({error})")
        return None
    return graph, output

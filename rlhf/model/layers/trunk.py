"""The frozen trunk: the decoder layers below the lowest adapter.

No adapter sits there, so these layers are the same for every role and never change. Their output is computed
once for a sequence and then put in their place wherever the sequence passes through the model again: in
scoring by every role, and in every epoch of training, forward and backward (trlX's frozen branch, carried
through to all roles).

Nothing is assumed of an architecture but that its layers stand in one `ModuleList` and take and return the
residual stream, alone or first in a tuple.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import Tensor, nn

# Shapes: B sequences, L tokens of a padded sequence, H hidden size.


class Trunk:
    """Runs either all layers of a decoder, or only those below the split, or only those above it."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self.split = len(layers)
        """Layers below the lowest adapter; all of them as long as there is none."""
        self.states_BLH: Tensor | None = None
        """What came out of the layer below the split: the last time alone, or what is put in its place."""
        self._part: Literal["all", "below", "above"] = "all"
        self._tuple_size = 0
        for number, layer in enumerate(layers):
            layer.forward = functools.partial(self._forward, number, layer.forward)

    @contextlib.contextmanager
    def below(self) -> Iterator[None]:
        """Inside the block only the layers below the split run, and what they return is kept."""
        with self._running("below"):
            yield

    @contextlib.contextmanager
    def above(self, states_BLH: Tensor) -> Iterator[None]:
        """Inside the block only the layers above the split run, on `states_BLH`."""
        self.states_BLH = states_BLH
        with self._running("above"):
            yield
        self.states_BLH = None

    def take(self) -> Tensor:
        """The states that `below` kept, which are then forgotten here."""
        states_BLH, self.states_BLH = self.states_BLH, None
        assert states_BLH is not None
        return states_BLH

    @contextlib.contextmanager
    def _running(self, part: Literal["below", "above"]) -> Iterator[None]:
        assert 0 < self.split < len(self.layers)
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def _forward(self, number: int, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What layer `number` does in place of its own `run`."""
        is_below = number < self.split
        if self._part == "all" or is_below == (self._part == "below"):
            output = run(*args, **kwargs)
            if self._part == "below" and number == self.split - 1:
                self._tuple_size = len(output) if isinstance(output, tuple) else 0
                self.states_BLH = output[0] if isinstance(output, tuple) else output
            return output
        states = args[0] if args else kwargs["hidden_states"]
        if self._part == "above" and number == self.split - 1:
            states = self.states_BLH
        return (states, *[None] * (self._tuple_size - 1)) if self._tuple_size else states


def decoder_layers(decoder: nn.Module, num_layers: int) -> list[nn.Module]:
    """The layers of a decoder in order, or nothing if they do not stand in one list."""
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return list(module)
    return []

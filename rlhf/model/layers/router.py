"""What one call of a decoder does: the only module that assigns a module's `forward`.

A `ForwardPass` says it all: which layers run, what enters in place of those that do not, whether rows are
packed, which tokens are wanted, in which role, and whether activations are recomputed. It is made once for a
call, never changes, and every layer of the call reads the same one.

The layers below the lowest adapter are the frozen trunk: they are the same for every role and never change.
Their output is computed once for a sequence (`stop`) and then put in their place (`first`, `entry_BLH`)
wherever the sequence passes through the model again: in scoring by every role, and in every epoch of
training, forward and backward (trlX's frozen branch, carried through to all roles).

Nothing is assumed of an architecture but that its layers are in one `ModuleList` and take and return the
residual stream, alone or first in a tuple. Packed rows need layers that know them: see `PackedLayers`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf.model.layers.varlen import Packing

# Shapes: B sequences, L tokens of a padded sequence, M tokens that are wanted, H hidden size. Packed rows are
# one row of N tokens: for them B is 1 and L is N.


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What one call of the decoder does."""

    role: str
    """Whose adapter the layers add."""
    first: int = 0
    """Layers below this one are skipped, ..."""
    entry_BLH: Tensor | None = None
    """... and this enters it in their place."""
    stop: int | None = None
    """Layers from this one on are skipped, and the result is what left the layer below; None: no layer is."""
    packing: Packing | None = None
    """How the rows were packed end to end; None: they are padded."""
    wanted_M: Tensor | None = None
    """Numbers of the packed tokens whose last state is wanted; None: all of them."""
    recompute: bool = False
    """Keep no activations but each layer's input, and run the layers again in the backward pass."""


class PackedLayers(Protocol):
    """The layers of a decoder in a form that takes packed rows, of whatever architecture or precision.

    The layers' own form would let a token see the sequences before its own.
    """

    def can_run(self) -> bool:
        """Whether all layers can run so, with the adapters and hooks that they have now."""

    def adapters_changed(self) -> None:
        """Receive that modules were replaced inside the layers."""

    def run(
        self,
        number: int,
        states_1NH: Tensor,
        given: Mapping[str, Any],
        packing: Packing,
        wanted_M: Tensor | None,
    ) -> Tensor:
        """What layer `number` makes of packed states: (1, N, H), or (1, M, H) of the wanted tokens.

        `given` is what the decoder gives its layers besides: position embeddings, for one.
        """


class _Call:
    """A `ForwardPass` under way."""

    def __init__(self, forward_pass: ForwardPass) -> None:
        self.forward_pass = forward_pass
        self.trunk_BLH: Tensor | None = None
        """What left the layer below `stop`."""


class Router:
    """Runs a decoder as a `ForwardPass` says.

    `enter_role` makes a block in which a role is on.
    """

    def __init__(
        self,
        decoder: nn.Module,
        layers: Sequence[nn.Module],
        *,
        packed: PackedLayers,
        enter_role: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._decoder = decoder
        self._num_layers = len(layers)
        self._packed = packed
        self._enter_role = enter_role
        self._call: _Call | None = None
        self._tuple_size = 0
        """How many values a layer returns as a tuple; 0: a tensor alone."""
        self._recomputing_layers: list[GradientCheckpointingLayer] = []
        self._recompute = functools.partial(checkpoint, use_reentrant=False, context_fn=self._contexts)
        for number, layer in enumerate(layers):
            replace_forward(layer, functools.partial(self._run_layer, number, layer.forward))

    def can_pack(self) -> bool:
        """Whether a pass over packed rows is possible now."""
        return self._packed.can_run()

    def run(self, ids_BL: Tensor, forward_pass: ForwardPass) -> Tensor:
        """Last hidden states (B, L, H) of `ids_BL`, or what left the layer below `stop`."""
        extra: dict[str, Any] = {}
        if forward_pass.packing is not None:
            # Packed attention needs no mask. Any with four dimensions is left as it is by transformers, which
            # would otherwise make one over the whole row.
            extra["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids_BL.device)
            extra["position_ids"] = forward_pass.packing.positions_1N
        call = _Call(forward_pass)
        # transformers recomputes a layer only in training mode, in which the layer also refuses a KV cache:
        # so the mode is on for this call alone. What is inside a layer stays in evaluation mode.
        recomputes_own = forward_pass.recompute and forward_pass.packing is None and torch.is_grad_enabled()
        in_training = self._recomputing_layers if recomputes_own else []
        for layer in in_training:
            layer.training = True
        try:
            with self._entered(call):
                output = self._decoder(input_ids=ids_BL, use_cache=False, **extra)
        finally:
            for layer in in_training:
                layer.training = False
        if forward_pass.stop is not None:
            assert call.trunk_BLH is not None
            return call.trunk_BLH
        states_BLH: Tensor = output.last_hidden_state
        return states_BLH

    def prepare_recomputing(self, model: nn.Module) -> None:
        """Let the layers of `model` be recomputed in passes that ask for it."""
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                # Set here rather than by the model's own switch, which would also demand gradients of the
                # frozen embeddings.
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = self._recompute  # type: ignore[assignment]
                self._recomputing_layers.append(layer)

    def _run_layer(self, number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What decoder layer `number` does in place of its `own` forward."""
        call = self._call
        if call is None:  # decoding, where every microsecond counts: the layer itself and nothing else
            return own(*args, **kwargs)
        this = call.forward_pass
        states_BLH = args[0] if args else kwargs["hidden_states"]
        is_below = number < this.first
        is_above = this.stop is not None and number >= this.stop
        if is_below or is_above:
            return self._skip(states_BLH if number != this.first - 1 else this.entry_BLH)
        if this.packing is None:
            output = own(*args, **kwargs)
        else:
            output = self._run_packed(number, states_BLH, kwargs, this)
        if this.stop is not None and number == this.stop - 1:
            self._tuple_size = len(output) if isinstance(output, tuple) else 0
            call.trunk_BLH = output[0] if isinstance(output, tuple) else output
        return output

    def _skip(self, states_BLH: Tensor | None) -> Any:
        """`states_BLH` in the form in which layers return theirs."""
        if self._tuple_size == 0:
            return states_BLH
        return (states_BLH, *[None] * (self._tuple_size - 1))

    def _run_packed(
        self, number: int, states_1NH: Tensor, given: Mapping[str, Any], this: ForwardPass
    ) -> Tensor:
        assert this.packing is not None
        wanted_M = this.wanted_M if number + 1 == self._num_layers else None
        if this.recompute and torch.is_grad_enabled():
            states: Tensor = self._recompute(
                self._packed.run, number, states_1NH, given, this.packing, wanted_M
            )
            return states
        return self._packed.run(number, states_1NH, given, this.packing, wanted_M)

    @contextlib.contextmanager
    def _entered(self, call: _Call) -> Iterator[None]:
        """Inside the block layers do what `call` says, in its role."""
        before = self._call
        self._call = call
        try:
            with self._enter_role(call.forward_pass.role):
                yield
        finally:
            self._call = before

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Blocks around a layer that runs, and around its recomputation.

        The backward pass comes when the call is over and its role's block has been left, so the call is bound
        when the layer runs and entered again around its recomputation.
        """
        assert self._call is not None
        return contextlib.nullcontext(), self._entered(self._call)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Let `module` run `forward` in place of what it runs now; calling what is returned takes that back."""
    before = vars(module).get("forward")  # the instance's own; without one the class's is used

    def restore() -> None:
        if before is None:
            del module.forward
        else:
            module.forward = before

    module.forward = forward
    return restore

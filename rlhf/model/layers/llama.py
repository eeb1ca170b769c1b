"""Decoder layers of the Llama kind with backward passes of their own.

What transformers writes as dozens of small operations, each of which goes over all activations and leaves
something behind for autograd, is here three steps: projections, attention, and the rest of the layer. Their
backward passes work in place, recompute what is cheap, and make no gradients of the frozen base. Residual
sums ride on matrix products. With enough tokens, a weight and its LoRA pair are added up, outside the model,
for as long as one product takes.

A layer is taken over only if it has exactly the parts of a Llama layer and, on a probe, the same output.
Every other one runs as transformers has it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf.model.layers.adapted_linear import (
    Pair,
    linear,
    linear_backward,
    paired,
    pairs_of,
    scales_of,
    tensors_of,
)
from rlhf.model.layers.varlen import Packing, attend

# Shapes: N tokens, M of them that are wanted, H hidden size, I inner size, O outputs, R LoRA rank.

_PARTS = {
    "": {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
_QUERIES_KEYS_VALUES = ("q_proj", "k_proj", "v_proj")
_AFTER_ATTENTION = ("o_proj", "gate_proj", "up_proj", "down_proj")


class FusedLayers:
    """The layers of a decoder in the fused form, which takes packed rows: see `PackedLayers`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = [_Layer(layer) for layer in layers] if all(map(_has_parts, layers)) else []
        self._is_plain: bool | None = None
        self._agrees: bool | None = None

    def adapters_changed(self) -> None:
        """Look at all linear layers again: adapters wrap them."""
        self._is_plain = None

    def assume_agreement(self) -> None:
        """Do without the probe, where tensors have no values."""
        self._agrees = True

    def can_run(self) -> bool:
        """Whether all layers can, with the adapters and hooks that they have now.

        ZeRO-3 gathers weights by hooks, on modules inside a layer in training and on the whole layer where
        weights are gathered layer by layer. The fused form would not fire the former; for the latter there is
        nothing to probe, since a layer's weights are there only while it runs.
        """
        if self._is_plain is None:
            self._is_plain = bool(self._layers) and all(layer.is_plain() for layer in self._layers)
        if not self._is_plain or any(layer.has_hooks() for layer in self._layers):
            return False
        if self._agrees is None:
            self._agrees = all(layer.agrees_with_plain() for layer in self._layers)
        return self._agrees

    def run(
        self,
        number: int,
        states_1NH: Tensor,
        given: Mapping[str, Any],
        packing: Packing,
        wanted_M: Tensor | None,
    ) -> Tensor:
        """What layer `number` makes of packed states: see `PackedLayers.run`."""
        cos_1ND, sin_1ND = given["position_embeddings"]
        return self._layers[number](states_1NH[0], cos_1ND[0], sin_1ND[0], packing, wanted_M)[None]


class _Layer:
    """One layer, and what is read from its modules."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        attention: Any = module.self_attn
        self.head_size: int = attention.head_dim
        self.scale: float = attention.scaling
        self._linears: dict[str, Any] = {}
        self._modules: list[nn.Module] = []

    def has_hooks(self) -> bool:
        """Whether there are hooks to fire when the layer or one of its modules runs."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self._modules)

    def is_plain(self) -> bool:
        """Whether all linear layers, with their adapters, are plain and in fp32."""
        for owner in ("self_attn", "mlp"):
            for name in _PARTS[owner] - {"act_fn"}:
                self._linears[name] = self.module.get_submodule(f"{owner}.{name}")
        self._modules = list(self.module.modules())
        return all(_is_plain(linear) for linear in self._linears.values())

    def __call__(
        self, x_NH: Tensor, cos_ND: Tensor, sin_ND: Tensor, packing: Packing, wanted_M: Tensor | None
    ) -> Tensor:
        flat = self.flat_pairs(_QUERIES_KEYS_VALUES)
        query, key, value = _Project.apply(x_NH, self, cos_ND, sin_ND, *flat)  # type: ignore[no-untyped-call]
        mixed_NH = attend(query, key, value, packing, head_size=self.head_size, scale=self.scale)
        flat = self.flat_pairs(_AFTER_ATTENTION)
        output: Tensor = _Finish.apply(x_NH, mixed_NH, self, wanted_M, *flat)  # type: ignore[no-untyped-call]
        return output

    def flat_pairs(self, names: Sequence[str]) -> list[Tensor | float | None]:
        """Down, up and scale of each of `names` in the current role; three None where it has no pair."""
        flat: list[Tensor | float | None] = []
        for name in names:
            flat += self.pair(name) or (None, None, None)
        return flat

    def pair(self, name: str) -> Pair | None:
        linear: Any = self._linears[name]
        adapter = linear._active_adapter[0] if type(linear) is LoraLinear else None
        if adapter is None or linear._disable_adapters or adapter not in linear.lora_A:
            return None
        return Pair(linear.lora_A[adapter].weight, linear.lora_B[adapter].weight, linear.scaling[adapter])

    def base(self, name: str) -> nn.Linear:
        linear: Any = self._linears[name]
        return cast(nn.Linear, linear.base_layer if type(linear) is LoraLinear else linear)

    @torch.no_grad()
    def agrees_with_plain(self) -> bool:
        """Whether a few random states come out as from the layer's own forward pass."""
        weight = self.base("q_proj").weight
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 6, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
        angles = torch.rand(1, 6, self.head_size // 2, generator=generator).to(weight.device, weight.dtype)
        cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
        try:
            wanted = self.module(x, position_embeddings=(cos, sin), attention_mask=None)
            wanted = wanted[0] if isinstance(wanted, tuple) else wanted
            given = self(x[0], cos[0], sin[0], Packing([6], 6, weight.device), None)[None]
        except (RuntimeError, TypeError, AttributeError):
            return False
        return bool(torch.allclose(given, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4))


def _has_parts(layer: nn.Module) -> bool:
    """Whether a layer has the parts of a Llama layer and no others."""
    for name, parts in _PARTS.items():
        module = layer.get_submodule(name) if not name or hasattr(layer, name) else None
        if module is None or {child for child, _ in module.named_children()} != parts:
            return False
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    is_silu = "silu" in type(layer.mlp.act_fn).__name__.lower()  # type: ignore[union-attr]
    has_numbers = all(hasattr(layer.self_attn, name) for name in ("head_dim", "scaling"))
    return is_silu and has_numbers and all(hasattr(norm, "variance_epsilon") for norm in norms)


def _is_plain(linear: Any) -> bool:
    """Whether a linear layer and its adapters are of the usual kind, and all in fp32."""
    adapted = type(linear) is LoraLinear
    base = linear.base_layer if adapted else linear
    parameters = list(base.parameters())
    if adapted:
        parameters += [*linear.lora_A.parameters(), *linear.lora_B.parameters()]
    return type(base) is nn.Linear and all(p.dtype == torch.float32 for p in parameters)


# ---- the two steps around attention ---------------------------------------------------------------------


class _Project(torch.autograd.Function):
    """Norm, the three projections, and rotary positions (2104.09864)."""

    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, layer: _Layer, cos_ND: Tensor, sin_ND: Tensor, *flat: Any
    ) -> tuple[Tensor, ...]:
        pairs, norm = pairs_of(flat), layer.module.input_layernorm
        normed_NH, inverse_N1 = _normed(x_NH, norm)
        outputs = linear(normed_NH, [layer.base(name) for name in _QUERIES_KEYS_VALUES], pairs)
        for output in outputs[:2]:
            _rotate(output, cos_ND, sin_ND, layer.head_size)
        ctx.save_for_backward(x_NH, inverse_N1, cos_ND, sin_ND, *tensors_of(pairs))
        ctx.layer, ctx.scales = layer, scales_of(pairs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        x_NH, inverse_N1, cos_ND, sin_ND, *tensors = ctx.saved_tensors
        layer, pairs = ctx.layer, paired(tensors, ctx.scales)
        given = [gradient.contiguous() for gradient in gradients]
        for place in (0, 1):
            # `attend` has made them for nobody else, and a rotation is undone by the opposite one.
            _rotate(given[place], cos_ND, -sin_ND, layer.head_size)
        norm = layer.module.input_layernorm
        normed_NH = _scaled(x_NH, inverse_N1, norm)
        bases = [layer.base(name) for name in _QUERIES_KEYS_VALUES]
        wants_x = ctx.needs_input_grad[0]
        gradient_NH, flat = linear_backward(given, normed_NH, bases, pairs, wants_input=wants_x)
        if not wants_x:
            return None, None, None, None, *flat
        _norm_backward(gradient_NH, x_NH, inverse_N1, norm)
        return gradient_NH, None, None, None, *flat


class _Finish(torch.autograd.Function):
    """Output projection, residual sum, norm, gated feed-forward (2002.05202), residual sum."""

    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, mixed_NH: Tensor, layer: _Layer, wanted_M: Tensor | None, *flat: Any
    ) -> Tensor:
        out, *gates, down = pairs_of(flat)
        ctx.num_tokens = len(x_NH)
        if wanted_M is not None:
            x_NH, mixed_NH = x_NH.index_select(0, wanted_M), mixed_NH.index_select(0, wanted_M)
        (sum_NH,) = linear(mixed_NH, [layer.base("o_proj")], [out], onto=x_NH)
        normed_NH, inverse_N1 = _normed(sum_NH, layer.module.post_attention_layernorm)
        bases = [layer.base("gate_proj"), layer.base("up_proj")]
        gate_NI, up_NI = linear(normed_NH, bases, gates)
        del normed_NH
        inner_NI = F.silu(gate_NI).mul_(up_NI)
        (output_NH,) = linear(inner_NI, [layer.base("down_proj")], [down], onto=sum_NH)
        saved = (mixed_NH, sum_NH, inverse_N1, gate_NI, up_NI, wanted_M)
        ctx.save_for_backward(*saved, *tensors_of([out, *gates, down]))
        ctx.layer, ctx.scales = layer, scales_of([out, *gates, down])
        return output_NH

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        mixed_NH, sum_NH, inverse_N1, gate_NI, up_NI, wanted_M, *tensors = ctx.saved_tensors
        layer, norm = ctx.layer, ctx.layer.module.post_attention_layernorm
        out, gate, up, down = paired(tensors, ctx.scales)
        output_gradient = gradients[0]
        active_NI = F.silu(gate_NI)
        inner_NI = active_NI * up_NI
        bases = [layer.base("down_proj")]
        inner_gradient, flat_down = linear_backward([output_gradient], inner_NI, bases, [down])
        up_gradient = active_NI.mul_(inner_gradient)
        gate_gradient = torch.ops.aten.silu_backward(inner_gradient.mul_(up_NI), gate_NI)
        normed_NH = _scaled(sum_NH, inverse_N1, norm)
        bases = [layer.base("gate_proj"), layer.base("up_proj")]
        sum_gradient, flat_gates = linear_backward([gate_gradient, up_gradient], normed_NH, bases, [gate, up])
        _norm_backward(sum_gradient, sum_NH, inverse_N1, norm)
        sum_gradient.add_(output_gradient)
        mixed_gradient, flat_out = linear_backward([sum_gradient], mixed_NH, [layer.base("o_proj")], [out])
        if wanted_M is not None:
            sum_gradient, mixed_gradient = (
                gradient.new_zeros(ctx.num_tokens, gradient.shape[1]).index_copy_(0, wanted_M, gradient)
                for gradient in (sum_gradient, mixed_gradient)
            )
        return sum_gradient, mixed_gradient, None, None, *flat_out, *flat_gates, *flat_down


# ---- their parts ----------------------------------------------------------------------------------------


def _normed(x_NH: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """RMS norm (1910.07467), and the inverse root mean squares."""
    lengths_N1 = torch.linalg.vector_norm(x_NH, dim=-1, keepdim=True)
    inverse_N1 = lengths_N1.square_().div_(x_NH.shape[1]).add_(norm.variance_epsilon).rsqrt_()
    return _scaled(x_NH, inverse_N1, norm), inverse_N1


def _scaled(x_NH: Tensor, inverse_N1: Tensor, norm: Any) -> Tensor:
    """The norm's output, where the inverse root mean squares are known."""
    return (x_NH * inverse_N1).mul_(norm.weight)


def _norm_backward(gradient_NH: Tensor, x_NH: Tensor, inverse_N1: Tensor, norm: Any) -> None:
    """Turn the gradient of the norm's output into that of its input, in place."""
    gradient_NH.mul_(norm.weight)
    along_N1 = (gradient_NH * x_NH).sum(-1, keepdim=True)
    along_N1.mul_(inverse_N1.pow(3)).div_(x_NH.shape[1])
    gradient_NH.mul_(inverse_N1).addcmul_(x_NH, along_N1, value=-1)


def _rotate(values_NO: Tensor, cos_ND: Tensor, sin_ND: Tensor, head_size: int) -> None:
    """Turn the halves of every head against each other, in place."""
    heads = values_NO.view(len(values_NO), -1, head_size)
    half = head_size // 2
    left, right = heads[..., :half], heads[..., half:]
    cos, sin = cos_ND[:, None], sin_ND[:, None]
    turned = right * sin[..., :half]
    right.mul_(cos[..., half:]).addcmul_(left, sin[..., half:])
    left.mul_(cos[..., :half]).sub_(turned)

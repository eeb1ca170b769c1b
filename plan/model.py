"""A model from its config alone: its sizes, and a backbone of it whose tensors have no memory."""

import contextlib
import copy
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from plan import stand_ins
from plan.ledger import Ledger, Profile, extrapolated
from rlhf.errors import UserError
from rlhf.model.adapters import adapted_modules
from rlhf.model.architecture import context_length, decoder_layers, linear_modules
from rlhf.model.backbone import Backbone
from rlhf.model.loading import check_model_path, quiet_transformers
from rlhf.settings.groups import LoraSettings, ModelSettings, Precision
from sft.scratch import model_config

# Shapes: O and I are a linear layer's output and input features.

QUANTIZED = ("int8", "nf4")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_NF4_BLOCK, _NF4_GROUP = 64, 256
"""Weights that share a scale, and scales that share a second one (QLoRA, 2305.14314, section 3)."""
_CONFIG_ERRORS = (
    ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, StrictDataclassError,
    TypeError, ValueError,
)  # fmt: skip
"""What transformers raises over a config that is damaged, or whose sizes contradict each other."""
_SHALLOW = (2, 3)
"""Trained layers of the two models that stand for a deep one of equal layers."""


@dataclass(frozen=True)
class Sketch:
    """The shapes of a causal language model, and how its base is held."""

    config: Any
    """A `PretrainedConfig`."""
    precision: Precision
    compute: torch.dtype
    """What a layer computes in; of a quantized base, also the type of all that is not quantized."""
    attention: str
    trust_remote_code: bool = False

    @staticmethod
    def of(settings: ModelSettings, *, on_cuda: bool) -> "Sketch":
        """The model that a recipe names, from its config; no weight is read.

        Raises:
            UserError: there is no such model, or its config cannot be read.
        """
        quiet_transformers()
        precision = settings.precision
        # Quantized layers compute as `model.precision` documents it: in bf16 on CUDA, in fp32 elsewhere.
        compute = _DTYPES.get(precision, torch.bfloat16 if on_cuda else torch.float32)
        # Flash attention and torch's fused kernels keep the same: no scores, and one number for each row.
        attention = "eager" if settings.attention == "eager" else "sdpa"
        remote = settings.trust_remote_code
        sketch = Sketch(read_config(settings), precision, compute, attention, trust_remote_code=remote)
        with _building(settings.path or "model.scratch"):
            _check_sizes(sketch._text(sketch.config))
            _ = sketch.network
        return sketch

    def held_as(self, precision: Precision) -> "Sketch":
        """The same model, unquantized in another precision."""
        return replace(self, precision=precision, compute=_DTYPES[precision])

    # ---- sizes ------------------------------------------------------------------------------------

    @cached_property
    def network(self) -> Any:
        """The whole model on the meta device: shapes alone."""
        return self._network(self.config)

    @cached_property
    def layers(self) -> list[nn.Module]:
        return decoder_layers(self.network)

    @property
    def hidden_size(self) -> int:
        return int(self._text(self.config).hidden_size)

    @property
    def context(self) -> int:
        """Tokens that the model sees."""
        return context_length(self.config)

    @property
    def stored_precision(self) -> Precision:
        """What the checkpoint says its weights are in, as near as training comes to it."""
        stored = getattr(self._text(self.config), "dtype", None) or getattr(self.config, "dtype", None)
        return "bf16" if stored in (torch.bfloat16, torch.float16) else "fp32"

    @cached_property
    def num_parameters(self) -> int:
        """All of them; tied ones count once."""
        return sum(p.numel() for p in self.network.parameters())

    @cached_property
    def base_bytes(self) -> int:
        """The base as it is held, quantization constants included."""
        return self._bytes(self.network)

    @cached_property
    def largest_part_bytes(self) -> int:
        """The largest of the decoder layers, the embeddings and the head."""
        parts = [*self.layers, self.network.get_input_embeddings(), self.network.get_output_embeddings()]
        return max(self._bytes(part) for part in parts)

    def adapter_parameters(self, settings: LoraSettings, *, stage: str) -> int:
        """r·(I + O) for every linear layer that the `settings` of `stage` put an adapter on.

        Raises:
            UserError: a target module, or more top layers, than the model has.
        """
        modules = adapted_modules(self.network, settings, where=f"{stage}.lora")
        return settings.rank * sum(sum(module.weight.shape) for module in modules)

    def _bytes(self, part: nn.Module) -> int:
        linear = linear_modules(self.network, part).values() if self.precision in QUANTIZED else ()
        packed = {id(module.weight) for module in linear}
        tensors = {id(t): t for t in (*part.parameters(), *part.buffers())}
        return sum(
            _quantized_bytes(self.precision, t) if key in packed else t.numel() * t.element_size()
            for key, t in tensors.items()
        )

    # ---- running it -------------------------------------------------------------------------------

    def profile(
        self,
        adapters: Mapping[str, LoraSettings],
        run: Callable[[Any, Ledger], None],
        *,
        wrap: Callable[[Any], Any] | None = None,
        per_trained_layer: bool = True,
    ) -> Profile:
        """What `run` needs at its peaks, on a backbone with `adapters` or on what `wrap` makes of the model.

        A deep model of equal layers is extrapolated from two shallow ones, in the number of layers that have
        adapters or, if not `per_trained_layer`, of all layers. Any other is run whole.
        """
        total = len(self.layers)
        tops = {settings.top_layers for settings in adapters.values()} or {None}
        top = next(iter(tops))
        trained = total if top is None else top
        if len(tops) > 1 or trained <= _SHALLOW[1] or not self._layers_are_equal:
            return self._run(self.config, adapters, run, wrap)
        num_below = 0 if trained == total else 1
        profiles: list[Profile] = []
        for depth in _SHALLOW:
            cut = {
                name: settings.model_copy(update={"top_layers": None if trained == total else depth})
                for name, settings in adapters.items()
            }
            profiles.append(self._run(self._shortened(num_below + depth), cut, run, wrap))
        depth, above = (trained, 0) if per_trained_layer else (total, num_below)
        shallow, deep = _SHALLOW
        return extrapolated(*profiles, depths=(shallow + above, deep + above), depth=depth)

    def _run(
        self,
        config: Any,
        adapters: Mapping[str, LoraSettings],
        run: Callable[[Any, Ledger], None],
        wrap: Callable[[Any], Any] | None,
    ) -> Profile:
        with torch.device("meta"):
            network = self._network(config)
            if self.precision in QUANTIZED:
                stand_ins.quantize(network, self.precision)
            subject: Any = wrap(network) if wrap else Backbone(network, stand_ins.tokenizer(), "")
            if isinstance(subject, Backbone):
                subject.fused.assume_agreement()
            for name, settings in adapters.items():
                subject.add_adapter(name, settings, seed=0)
                subject.add_head(name, bias=True)
        mode = FakeTensorMode()
        stand_ins.make_fake(subject, mode)
        ledger = Ledger([*subject.parameters(), *subject.buffers()])
        with mode, ledger, stand_ins.one_sequence_a_row(network.get_decoder()):
            run(subject, ledger)
        return ledger.peaks

    def _network(self, config: Any) -> Any:
        config = copy.deepcopy(config)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config,
                dtype=self.compute,
                attn_implementation=self.attention,
                trust_remote_code=self.trust_remote_code,
            )

    @property
    def _layers_are_equal(self) -> bool:
        kinds = {tuple((n, p.shape) for n, p in layer.named_parameters()) for layer in self.layers}
        patterns = [value for value in self._per_layer().values() if len({str(v) for v in value}) > 1]
        return len(kinds) == 1 and not patterns

    def _per_layer(self) -> dict[str, Sequence[Any]]:
        """What the config lists layer by layer."""
        values = vars(self._text(self.config)).items()
        return {k: v for k, v in values if isinstance(v, list | tuple) and len(v) == len(self.layers)}

    def _shortened(self, num_layers: int) -> Any:
        config = copy.deepcopy(self.config)
        text = self._text(config)
        for name, value in self._per_layer().items():
            setattr(text, name, list(value)[:num_layers])
        text.num_hidden_layers = num_layers
        return config

    @staticmethod
    def _text(config: Any) -> Any:
        return config.get_text_config()


@contextlib.contextmanager
def _building(path: str) -> Iterator[None]:
    """Turn what transformers raises over a config whose sizes contradict each other into a message.

    Raises:
        UserError: no model can be built from the config.
    """
    try:
        yield
    except _CONFIG_ERRORS as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise UserError(
            f"its config describes no causal language model that can be built: {reason}",
            where=path,
            fix="Check its model_type, and its sizes: width, heads, key and value heads, layers.",
        ) from error


def _check_sizes(text: Any) -> None:
    """Refuse what transformers would build, and what would fail in its first pass."""
    heads = getattr(text, "num_attention_heads", None) or 1
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if text.num_hidden_layers < 1:
        raise ValueError(f"{text.num_hidden_layers} layers")
    if heads % kv_heads:
        raise ValueError(f"{heads} heads cannot share {kv_heads} heads of keys and values")


def read_config(settings: ModelSettings) -> Any:
    """The transformers config of the model that a recipe names; no weight is read.

    Raises:
        UserError: there is no such model, or its config cannot be read.
    """
    if settings.scratch is not None:
        return model_config(settings.scratch, vocab_size=settings.scratch.vocab_size)
    assert settings.path is not None
    check_model_path(settings.path, revision=settings.revision)
    with _building(settings.path):
        return AutoConfig.from_pretrained(
            settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )


def _quantized_bytes(precision: str, weight_OI: Tensor) -> int:
    """A quantized weight with its constants.

    8 bits: a scale in fp32 for each output. nf4: an 8-bit scale for each block, and for each group of those
    one in fp32.
    """
    num = weight_OI.numel()
    if precision == "int8":
        return num + 4 * weight_OI.shape[0]
    blocks = -(-num // _NF4_BLOCK)
    return num // 2 + blocks + 4 * -(-blocks // _NF4_GROUP)

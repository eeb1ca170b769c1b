"""One frozen base model in memory, and the roles that adapters give it.

| role | what runs |
|---|---|
| `reference` | the base alone |
| `policy`, `reward`, `value` | the base plus the LoRA adapter of that name |

A role is entered with `with backbone.role("policy"):`. Entering one changes which adapter a LoRA layer
adds, and nothing else: no weight is merged and no `requires_grad` flag is touched, so optimizers and
their parameter groups never notice. Dropout is off in every role, in training too.
"""

import contextlib
import functools
import inspect
import json
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from rlhf.errors import UserError
from rlhf.hub import check_hub
from rlhf.model.batching import TokenBatch
from rlhf.model.chat import eos_ids
from rlhf.model.layers.llama import FusedLayers, Run
from rlhf.model.layers.logprobs import token_logprobs
from rlhf.model.layers.lora import lighten
from rlhf.model.layers.trunk import Trunk, decoder_layers
from rlhf.model.quantization import is_quantized, load_options, settle
from rlhf.model.weights import loading_weights
from rlhf.settings.groups import LoraSettings, ModelSettings, Precision

# Shapes: B sequences, L tokens of a padded sequence, N selected tokens, H hidden size, V vocabulary.

T = TypeVar("T")

REFERENCE = "reference"
_LONGEST_REASON = 600
"""Characters of what transformers says that a message keeps: it may list every model that it knows."""
_LOGIT_ELEMENTS_KEPT = 2**26
"""Up to this many logits, a (N, V) block waits for the backward pass: 256 MiB in fp32."""
_LOGIT_ELEMENTS_PER_CHUNK = 2**24
"""Otherwise logits are made in chunks of at most this many, and made again in the backward pass: 64 MiB."""
_LOGIT_CHANGES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""What some architectures do to logits, by the name of the setting."""


class Backbone(nn.Module):
    """The frozen base, its adapters and its scalar heads."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        path: str,
        *,
        model_settings: ModelSettings | None = None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.heads = nn.ModuleDict()
        self.tokenizer = tokenizer
        self.path = path
        self._model_settings = model_settings
        self.adapters: dict[str, LoraSettings] = {}
        self._role = REFERENCE
        self._lora_layers: list[LoraLayer] = []
        self._checkpointed_layers: list[GradientCheckpointingLayer] = []
        self._decoder = model.get_decoder()
        self._linear_names = _linear_names(model)
        layers = decoder_layers(self._decoder, model.config.get_text_config().num_hidden_layers)
        self.has_plain_cache = _has_plain_cache(model, len(layers))
        # Other caches tell of windows or recurrent states, which fused layers do not know.
        self.fused = FusedLayers(layers if self.has_plain_cache else [])
        self.trunk = Trunk(layers)
        self._takes_4d_mask = self.has_plain_cache and model.config._attn_implementation == "sdpa"
        self._takes_positions = "position_ids" in inspect.signature(self._decoder.forward).parameters
        self._disable_dropout()
        generation: GenerationConfig | None = model.generation_config
        self.eos_ids = eos_ids(tokenizer, generation)

    @staticmethod
    def load(
        path: str | Path,
        *,
        revision: str | None = None,
        settings: ModelSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> "Backbone":
        """Load a causal language model, frozen, from a local folder or a hub id.

        `revision` is the hub's. `settings` gives precision, attention and whether remote code is trusted; its
        own `path` and `revision`, which belong together, are not read.

        Raises:
            UserError: there is no such model, or it cannot be loaded.
        """
        quiet_transformers()
        options = load_options("fp32" if settings is None else settings.precision, device)
        common: dict[str, Any] = {"revision": revision} if revision else {}
        if settings is not None:
            options["attn_implementation"] = settings.attention
            common["trust_remote_code"] = settings.trust_remote_code
        check_model_path(path, revision=revision)
        with loading("tokenizer", path):
            tokenizer = AutoTokenizer.from_pretrained(path, **common)
        with loading("model", path), loading_weights("fp32" if settings is None else settings.precision):
            model = AutoModelForCausalLM.from_pretrained(path, **options, **common)
        model.config.use_cache = True
        if is_quantized(model):
            settle(model)
        else:
            nn.Module.to(model, device)
        return Backbone(model, tokenizer, str(path), model_settings=settings)

    # ---- what it is -------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def precision(self) -> Precision:
        """How the base is held."""
        return "fp32" if self._model_settings is None else self._model_settings.precision

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def max_length(self) -> int:
        """Context of the base in tokens."""
        config = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions"):
            if isinstance(length := getattr(config, name, None), int):
                return length
        return 2**31

    @property
    def pad_id(self) -> int:
        """A valid token id to fill padding with; masks, never this id, say what is padding."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if isinstance(pad, int) else self.eos_ids[0]

    def forward(self, work: Callable[[], T]) -> T:
        """Run `work`, which runs parts of the backbone: how DeepSpeed is told where a pass begins."""
        return work()

    def train(self, mode: bool = True) -> "Backbone":
        """Does nothing: every role stays in evaluation mode, so that dropout never comes on."""
        del mode
        return self

    # ---- roles ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def role(self, name: str) -> Iterator[None]:
        """Run the base as `name` inside the block; roles nest."""
        if name != REFERENCE and name not in self.adapters:
            raise ValueError(f"no adapter {name!r} (there are {sorted(self.adapters)})")
        before = self._role
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, name: str) -> None:
        # PEFT's public set_adapter/enable_adapters also flip requires_grad, which would change an
        # optimizer's (and DeepSpeed's) parameter groups under it; these two attributes are all a LoRA
        # layer's forward reads.
        if name == self._role:
            return
        for layer in self._lora_layers:
            layer._disable_adapters = name == REFERENCE
            layer._active_adapter = [name]
        self._role = name

    # ---- adapters and heads -----------------------------------------------------------------------

    def add_adapter(self, name: str, settings: LoraSettings, *, seed: int) -> None:
        """Add a fresh LoRA adapter (B = 0: it starts as the base), kept in fp32.

        Raises:
            UserError: `target_modules` names a module that the base does not have.
        """
        if name in self.adapters or name == REFERENCE:
            raise ValueError(f"adapter {name!r} exists")
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT only divides by the rank
            target_modules=self._targets(settings),
            layers_to_transform=self._layer_numbers(settings),
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=_has_conv1d(self.model),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed)
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            inject_adapter_in_model(config, self.model, adapter_name=name)
        self._lora_layers = [layer for layer in self.model.modules() if isinstance(layer, LoraLayer)]
        for layer in self._lora_layers:
            lighten(layer)
        self.fused.adapters_changed()
        self.trunk.split = _lowest_adapter(self.trunk.layers, len(self._lora_layers))
        self.adapters[name] = settings
        for parameter in self.adapter_parameters(name).values():
            parameter.data = parameter.data.float()
        self.model.requires_grad_(False).eval()
        self._role = ""  # injection left the layers in PEFT's own state
        self._enter(REFERENCE)

    def copy_adapter(self, source: str, name: str) -> None:
        """Add the adapter `name` as a copy of `source`."""
        self.add_adapter(name, self.adapters[source], seed=0)
        originals = self.adapter_parameters(source)
        with torch.no_grad():
            for key, parameter in self.adapter_parameters(name).items():
                parameter.copy_(originals[key])

    def load_adapter(self, name: str, folder: Path) -> None:
        """Add the adapter that `export_adapter` (or PEFT) wrote into `folder`; heads in it are left alone.

        Raises:
            UserError: the folder holds no LoRA adapter, or one that does not fit on this base.
        """
        config, tensors = _read_adapter(folder)
        targets, layers = config["target_modules"], config.get("layers_to_transform")
        settings = LoraSettings(
            rank=config["r"],
            alpha=config["lora_alpha"],
            target_modules=targets if isinstance(targets, str) else sorted(targets),
            top_layers=len(self.trunk.layers) - min(layers) if layers else None,
        )
        self.add_adapter(name, settings, seed=0)
        wanted = self.adapter_parameters(name)
        given = {k.removeprefix("base_model.model."): v for k, v in tensors.items() if "lora_" in k}
        if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in given.items()}:
            raise UserError(
                "the adapter's tensors do not fit on this base model",
                where=str(folder),
                fix="Use the adapter with the base it was trained on, or train it again.",
            )
        set_peft_model_state_dict(self.model, given, adapter_name=name)

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Parameter by PEFT's name for it (without the adapter's own name) of one adapter."""
        return {
            key.replace(f".{name}.", "."): parameter
            for key, parameter in self.model.named_parameters()
            if ".lora_" in key and f".{name}." in key
        }

    def add_head(self, name: str, *, bias: bool) -> nn.Linear:
        """Add a scalar head H → 1 in fp32, all zeros."""
        head = nn.Linear(self.hidden_size, 1, bias=bias, dtype=torch.float32, device=self.device)
        nn.init.zeros_(head.weight)
        if bias:
            nn.init.zeros_(head.bias)
        self.heads[name] = head.requires_grad_(False)
        return head

    def set_trainable(self, names: Sequence[str]) -> list[nn.Parameter]:
        """Let gradients flow into exactly the adapters and heads called `names`; returns their parameters."""
        chosen: list[nn.Parameter] = []
        for name in sorted({*self.adapters, *self.heads}):
            parameters = self.role_parameters(name)
            for parameter in parameters.values():
                parameter.requires_grad_(name in names)
            if name in names:
                chosen += parameters.values()
        return chosen

    def role_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """All parameters of one role: its adapter's, and its head's as `head.*`."""
        parameters = self.adapter_parameters(name) if name in self.adapters else {}
        if name in self.heads:
            parameters |= {f"head.{key}": value for key, value in self.heads[name].named_parameters()}
        return parameters

    # ---- forward ----------------------------------------------------------------------------------

    def hidden(
        self,
        batch: Tensor | TokenBatch,
        *,
        trunk_BLH: Tensor | None = None,
        wanted_M: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (B, L, H) of the current role. Bare ids (B, L) have no padding.

        Rows begin in the first column and may be padded on the right, where causal attention never looks: so
        no mask is needed, and what comes out over padding means nothing. Where the layers can be fused,
        padding is never computed.

        With `trunk_BLH`, what `run_trunk` returned for the same rows, only the layers above the split run.
        With `wanted_M`, places in the flattened (B, L) input, only the states (M, H) there are returned.
        """
        batch = batch if isinstance(batch, TokenBatch) else TokenBatch(batch)
        run = self._packed(batch)
        if run is None:
            hidden_BLH = self._run_decoder(batch.ids_BL, trunk_BLH)
            return hidden_BLH if wanted_M is None else hidden_BLH.flatten(0, 1).index_select(0, wanted_M)
        packing = run.packing
        if wanted_M is not None:
            run.wanted_M = packing.numbers_of(wanted_M)
        trunk_1NH = None if trunk_BLH is None else packing.pack(trunk_BLH)
        hidden_NH = self._run_decoder(packing.pack(batch.ids_BL), trunk_1NH, run)[0]
        return packing.unpack(hidden_NH) if wanted_M is None else hidden_NH

    @torch.no_grad()
    def run_trunk(self, batch: Tensor | TokenBatch) -> Tensor | None:
        """States (B, L, H) that enter the lowest layer with an adapter; None where that is the first layer.

        They are the same in every role, because nothing below has an adapter. Rows as in `hidden`.
        """
        if not 0 < self.trunk.split < len(self.trunk.layers):
            return None
        batch = batch if isinstance(batch, TokenBatch) else TokenBatch(batch)
        run = self._packed(batch)
        with self.trunk.below():
            self._run_decoder(batch.ids_BL if run is None else run.packing.pack(batch.ids_BL), None, run)
        states = self.trunk.take()
        return states if run is None else run.packing.unpack(states[0])

    def _packed(self, batch: TokenBatch) -> Run | None:
        """The batch in one row without padding; None where the layers run in their own form."""
        return Run(batch.packing) if self.fused.can_run() else None

    def _run_decoder(self, input_ids: Tensor, trunk: Tensor | None, run: Run | None = None) -> Tensor:
        """Last hidden states, of padded rows or of the one row of `run`."""
        extra: dict[str, Any] = {}
        if run is not None:
            # A mask with four dimensions is left as it is, and fused layers ask for none.
            extra["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
            extra["position_ids"] = run.packing.positions_1N
        # A layer is checkpointed only in training mode, in which it also refuses a KV cache: so the mode is
        # on for this call alone. Its children stay in evaluation mode.
        for layer in self._checkpointed_layers:
            layer.training = torch.is_grad_enabled() and run is None
        with contextlib.nullcontext() if trunk is None else self.trunk.above(trunk), self.fused.running(run):
            output = self._decoder(input_ids=input_ids, use_cache=False, **extra)
        for layer in self._checkpointed_layers:
            layer.training = False
        states: Tensor = output.last_hidden_state
        return states

    def next_hidden(self, input_ids_BQ: Tensor, mask_BC: Tensor, cache: Cache) -> Tensor:
        """Last hidden states (B, Q, H) of tokens that follow what `cache` holds, which grows by them.

        `mask_BC` says which of the cache's columns, the new ones included, hold tokens of a row. A row's
        tokens lie next to each other; several new ones end in the last column.
        """
        num_new = input_ids_BQ.shape[1]
        mask: Tensor | None = mask_BC
        if num_new == 1 and self._takes_4d_mask:
            mask = mask_BC[:, None, None, :]  # as attention wants it: nothing is left to make
        extra: dict[str, Any] = {}
        if self._takes_positions:
            alone = num_new == 1
            counts = mask_BC.sum(1, keepdim=True) if alone else mask_BC.long().cumsum(-1)[:, -num_new:]
            extra["position_ids"] = (counts - 1).clamp_(min=0)
        output = self._decoder(
            input_ids=input_ids_BQ, attention_mask=mask, past_key_values=cache, use_cache=True, **extra
        )
        hidden_BQH: Tensor = output.last_hidden_state
        return hidden_BQH

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits (N, V) in fp32, with the base's own scaling and soft cap."""
        logits = self.model.get_output_embeddings()(hidden_NH).float()
        config = self.model.config.get_text_config()
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        logits_NV: Tensor = logits
        return logits_NV

    def logprobs(self, hidden_NH: Tensor, targets_N: Tensor, *, temperature: float) -> Tensor:
        """Log-probability (N,) of the next token, nats, under softmax(logits / temperature).

        Beyond a moderate size the (N, V) logits exist one chunk at a time, in the backward pass too.
        """

        def one(hidden: Tensor, targets: Tensor) -> Tensor:
            return -F.cross_entropy(self.logits(hidden) / temperature, targets, reduction="none")

        needs_grad = torch.is_grad_enabled() and hidden_NH.requires_grad
        keep = needs_grad and len(hidden_NH) * self._vocab_size <= _LOGIT_ELEMENTS_KEPT
        rows = len(hidden_NH) if keep else self._rows_per_chunk()
        chunks = list(zip(hidden_NH.split(rows), targets_N.split(rows), strict=True))
        if (weight_VH := self._plain_head()) is not None:
            return torch.cat(
                [token_logprobs(h, weight_VH, t, temperature=temperature, keep=keep) for h, t in chunks]
            )
        if needs_grad and not keep:
            return torch.cat([checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([one(*chunk) for chunk in chunks])

    def _plain_head(self) -> Tensor | None:
        """The output head's weight (V, H), where logits are its product with the states and nothing else."""
        head, config = self.model.get_output_embeddings(), self.model.config.get_text_config()
        # Under ZeRO-3 a hook gathers the weight, when the module is called and only then.
        is_plain = type(head) is nn.Linear and head.bias is None and not head._forward_pre_hooks
        is_plain = is_plain and not head.weight.requires_grad
        if not is_plain or any(getattr(config, name, None) is not None for name in _LOGIT_CHANGES):
            return None
        weight_VH: Tensor = head.weight
        return weight_VH

    @property
    def _vocab_size(self) -> int:
        return int(self.model.get_output_embeddings().out_features)

    def _rows_per_chunk(self) -> int:
        return max(1, _LOGIT_ELEMENTS_PER_CHUNK // self._vocab_size)

    def scalar(self, head: str, hidden_NH: Tensor) -> Tensor:
        """The head's output (N,) in fp32."""
        output_N: Tensor = self.heads[head](hidden_NH.float()).squeeze(-1)
        return output_N

    def enable_gradient_checkpointing(self) -> None:
        """Recompute layers in the backward pass, each in the role that its forward pass ran in.

        The backward pass comes after the role's block has been left, so role and packing are bound when the
        layer runs and entered again around its recomputation.
        """

        def contexts() -> tuple[Any, Any]:
            return contextlib.nullcontext(), self._again(self._role, self.fused.run)

        recompute = functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)
        self.fused.checkpoint = recompute
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                # Set here rather than by the model's own switch, which would also demand gradients of the
                # frozen embeddings.
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = recompute  # type: ignore[assignment]
                self._checkpointed_layers.append(layer)

    @contextlib.contextmanager
    def _again(self, role: str, run: Run | None) -> Iterator[None]:
        """Inside the block layers are recomputed as they ran."""
        with self.role(role), self.fused.running(run):
            yield

    # ---- leaving the house ------------------------------------------------------------------------

    def export_adapter(
        self, name: str, folder: Path, *, task_type: str, base_path: str, head: str | None = None
    ) -> None:
        """Write one adapter as a plain PEFT folder (`adapter_config.json`, `adapter_model.safetensors`).

        With `head`, the scalar head goes along as the `score` of a sequence-classification model; it must
        have no bias, because PEFT's has none.
        """
        tensors = get_peft_model_state_dict(self.model, adapter_name=name)
        tensors = {f"base_model.model.{k}": v.detach().cpu().contiguous() for k, v in tensors.items()}
        if head is not None:
            module = self.heads[head]
            assert isinstance(module, nn.Linear)
            assert module.bias is None
            tensors["base_model.model.score.weight"] = module.weight.detach().cpu().clone()
        config = LoraConfig(
            r=self.adapters[name].rank,
            lora_alpha=self.adapters[name].alpha,  # type: ignore[arg-type]
            target_modules=self._targets(self.adapters[name]),
            layers_to_transform=self._layer_numbers(self.adapters[name]),
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=_has_conv1d(self.model),
            task_type=task_type,
            base_model_name_or_path=base_path,
            modules_to_save=["score"] if head is not None else None,
            inference_mode=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        _sort_targets(folder / "adapter_config.json")
        self.tokenizer.save_pretrained(str(folder))

    def merged(self, name: str) -> "Backbone":
        """Base + adapter as one plain model: a second copy on the CPU, in the type that the base has on disk.

        The sum is made in fp32 and rounded once. The weights in memory are not touched: merging into low
        precision and taking out again drifts.
        """
        remote = self._model_settings is not None and self._model_settings.trust_remote_code
        copy = AutoModelForCausalLM.from_pretrained(self.path, dtype="auto", trust_remote_code=remote)
        modules = dict(copy.named_modules())
        with torch.no_grad():
            for key, layer in self.model.named_modules():
                if isinstance(layer, LoraLayer) and name in layer.lora_A:
                    weight, down, up = modules[key].weight, layer.lora_A[name], layer.lora_B[name]
                    assert isinstance(down, nn.Linear)
                    assert isinstance(up, nn.Linear)
                    update = (up.weight @ down.weight * layer.scaling[name]).float().cpu()
                    # A quantized layer does not say which way round the plain model keeps its weight.
                    update = update.T if isinstance(modules[key], Conv1D) else update
                    weight.copy_((weight.float() + update).to(weight.dtype))
        return Backbone(copy, self.tokenizer, self.path)

    def export_merged(self, name: str, folder: Path) -> None:
        """Write base + adapter as one plain model: see `merged`."""
        self.merged(name).save(folder)

    def save(self, folder: Path) -> None:
        """Write the base itself as a plain model, with its tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    # ---- private ----------------------------------------------------------------------------------

    def _targets(self, settings: LoraSettings) -> list[str]:
        if settings.target_modules == "all-linear":
            return sorted(self._linear_names)
        wanted = settings.target_modules
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        for name in names:
            if name not in self._linear_names:
                raise UserError(
                    f"the base model has no linear module `{name}`",
                    where="target_modules",
                    fix=f'It has {", ".join(sorted(self._linear_names))}; "all-linear" takes all of them.',
                )
        return sorted(names)

    def _layer_numbers(self, settings: LoraSettings) -> list[int] | None:
        """The layers that get an adapter; None for all of them, also outside the layers."""
        count = len(self.trunk.layers)
        if settings.top_layers is None:
            return None
        if settings.top_layers > count:
            what = f"the base model has {count} layers" if count else "the base model's layers are in no list"
            raise UserError(
                f"{what}, so adapters cannot be on the top {settings.top_layers}",
                where="lora.top_layers",
                fix="Give a smaller number, or unset it: adapters on all layers.",
            )
        return list(range(count - settings.top_layers, count))

    def _disable_dropout(self) -> None:
        for module in self.model.modules():
            for attribute, value in vars(module).items():
                if "drop" in attribute and isinstance(value, float):
                    setattr(module, attribute, 0.0)
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.Embedding):
                module.padding_idx = None  # a pad id that is also a real token must get its gradient


def quiet_transformers() -> None:
    """No progress bars and no advice from transformers: our own commands say what goes on."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@contextlib.contextmanager
def loading(part: Literal["model", "tokenizer"], path: str | Path) -> Iterator[None]:
    """Turn what transformers raises into a message that keeps what it begins with.

    Raises:
        UserError: loading failed.
    """
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        fix = "Give a folder with config.json, tokenizer and safetensors weights."
        if not Path(path).is_dir():
            fix = "Check the id, the network, and whether HF_HUB_OFFLINE is set, or give a local folder."
        what = "the model" if part == "model" else "the model (its tokenizer)"
        reason = textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" …")
        raise UserError(f"cannot load {what}: {reason}", where=str(path), fix=fix) from error


def check_model_path(path: str | Path, *, revision: str | None = None) -> None:
    """Tell a missing local folder from a hub id, and a hub that answers from one that does not.

    Raises:
        UserError: `path` looks like a local folder and does not exist, or holds no model; no hub answers.
    """
    text, folder = str(path), Path(path)
    looks_local = text.startswith((".", "/", "~")) or text.count("/") != 1
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                "the folder holds no config.json", where=text, fix="Give a Hugging Face model folder."
            )
    elif looks_local or folder.exists():
        raise UserError(
            "there is no such model folder", where=text, fix="Give a model folder or a hub id owner/name."
        )
    else:
        check_hub(text, kind="model", revision=revision, where=text)


def init_head(head: nn.Linear, *, seed: int) -> None:
    """Draw a reward head's weights from N(0, 1/(H+1)) (2009.01325, as 2403.17031 section 4.4 reads it)."""
    generator = torch.Generator().manual_seed(seed)
    std = 1 / math.sqrt(head.in_features + 1)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)


def load_score_head(head: nn.Linear, folder: Path) -> None:
    """Copy the `score` of a published sequence-classification adapter into `head`.

    Raises:
        UserError: the adapter carries no score, or one of another width.
    """
    _, tensors = _read_adapter(folder)
    scores = [tensor for key, tensor in tensors.items() if key.endswith("score.weight")]
    if len(scores) != 1 or scores[0].shape != head.weight.shape:
        raise UserError(
            "the adapter has no score head that fits this base",
            where=str(folder),
            fix="Train a reward model first.",
        )
    with torch.no_grad():
        head.weight.copy_(scores[0])


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config_file.is_file() or not weights_file.is_file():
        raise UserError(
            "no adapter here (adapter_config.json and adapter_model.safetensors)",
            where=str(folder),
            fix="Give the folder that a finished stage published.",
        )
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"a {config.get('peft_type')} adapter; only LoRA is known",
            where=str(folder),
            fix="Give a LoRA adapter.",
        )
    return config, load_file(weights_file)


def _sort_targets(file: Path) -> None:
    """Put the target modules in order: PEFT keeps a set, whose order is another in every process."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _lowest_adapter(layers: Sequence[nn.Module], num_adapted: int) -> int:
    """Number of the lowest of `layers` that holds an adapter; 0 if an adapted module is outside of them."""
    counts = [sum(isinstance(module, LoraLayer) for module in layer.modules()) for layer in layers]
    if sum(counts) < num_adapted:
        return 0
    return next((number for number, count in enumerate(counts) if count), len(layers))


def _has_plain_cache(model: PreTrainedModel, num_layers: int) -> bool:
    """Whether every layer's cache simply holds all keys and values: no window, no recurrent state."""
    layers = DynamicCache(config=model.config).layers
    return len(layers) == num_layers and all(type(layer) is DynamicLayer for layer in layers)


def _linear_names(model: PreTrainedModel) -> set[str]:
    """Last name components of the linear layers that LoRA may wrap: all but the output head."""
    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def _has_conv1d(model: PreTrainedModel) -> bool:
    """Whether the plain model keeps its linear layers' weights transposed, as GPT-2 does."""
    return any(issubclass(getattr(m, "source_cls", type(m)), Conv1D) for m in model.modules())

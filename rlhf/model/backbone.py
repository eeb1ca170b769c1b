"""The one backbone: the forward passes of a frozen base in each of its roles, and what is made of them.

`rlhf/model/roles.py` says what a role is.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Cache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf.model.adapters import lowest_adapted
from rlhf.model.agreement import (
    CacheUse,
    cache_use,
    check_agreement,
    logit_rounding_nats,
    say_how_far_it_sees,
)
from rlhf.model.architecture import (
    context_length,
    decoder_layers,
    decoder_of,
    has_plain_cache,
    routes_tokens,
)
from rlhf.model.batching import TokenBatch
from rlhf.model.cached import CachedDecoder
from rlhf.model.chat import eos_ids
from rlhf.model.layers.llama import FusedLayers
from rlhf.model.layers.router import ForwardPass, Router
from rlhf.model.loading import load_causal_model
from rlhf.model.logits import OutputHead
from rlhf.model.merging import add_adapter_to_weights
from rlhf.model.roles import REFERENCE, AdaptedModel
from rlhf.model.stored_adapter import StoredAdapter
from rlhf.model.vocabulary import exclude, unsampled_ids
from rlhf.parallel.deepspeed.sharded import whole_shape
from rlhf.settings.groups import LoraSettings, ModelSettings, Precision

# Shapes: B sequences, L tokens of a padded sequence, N selected tokens, M wanted ones, H hidden size,
# V vocabulary.

__all__ = ["REFERENCE", "Backbone"]

T = TypeVar("T")


class Backbone(AdaptedModel):
    """The forward passes of the frozen base in each of its roles."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        path: str,
        *,
        model_settings: ModelSettings | None = None,
    ) -> None:
        super().__init__(model)
        self.tokenizer = tokenizer
        self.path = path
        self._model_settings = model_settings
        self.layers = decoder_layers(model)
        """The decoder's layers in order; empty if they are not in one list."""
        self.trunk_depth = len(self.layers)
        """Layers below the lowest adapter; all of them as long as there is none."""
        self._output_head = OutputHead(model, same_role=lambda: self.role(self._role))
        self._cached_decoder = CachedDecoder(model)
        self.has_plain_cache = has_plain_cache(model, len(self.layers))
        # Other caches tell of windows or recurrent states, which fused layers do not know.
        self.fused = FusedLayers(self.layers if self.has_plain_cache else [])
        self._router = Router(decoder_of(model), self.layers, packed=self.fused, enter_role=self.role)
        self._recompute = False
        generation: GenerationConfig | None = model.generation_config
        self.eos_ids = eos_ids(tokenizer, generation)
        num_rows = whole_shape(model.get_output_embeddings().weight)[0]
        unsampled = unsampled_ids(tokenizer, num_rows, eos_ids=self.eos_ids)
        self._unsampled = torch.tensor(unsampled, device=self.device) if unsampled else None

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
            UserError: there is no such model, it cannot be loaded, or what we would make of it is not what
                its own forward pass makes (see `rlhf.model.agreement`).
        """
        model, tokenizer = load_causal_model(path, revision=revision, settings=settings, device=device)
        backbone = Backbone(model, tokenizer, str(path), model_settings=settings)
        say_how_far_it_sees(model, str(path))
        check_agreement(model, backbone._output_head, where=str(path), hidden=backbone.hidden)
        return backbone

    # ---- what it is -------------------------------------------------------------------------------

    @property
    def precision(self) -> Precision:
        """How the base is held."""
        return "fp32" if self._model_settings is None else self._model_settings.precision

    @property
    def max_length(self) -> int:
        """Context of the base in tokens."""
        return context_length(self.model.config)

    @property
    def routes_tokens(self) -> bool:
        """Whether the model chooses experts for each token, so that rounding may choose others."""
        return routes_tokens(self.model.config)

    @cached_property
    def logit_rounding_nats(self) -> float:
        """How far rounding alone moves a logit of usual size. Weights must be whole."""
        return logit_rounding_nats(self.model)

    @cached_property
    def cache_use(self) -> CacheUse:
        """What decoding with a cache bears. It is tried once, when it is first asked for."""
        return cache_use(self.model, self._output_head)

    @property
    def pad_id(self) -> int:
        """A valid token id to fill padding with; masks, never this id, say what is padding."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if isinstance(pad, int) else self.eos_ids[0]

    def forward(self, work: Callable[[], T]) -> T:
        """Run `work`, which runs parts of the backbone: how DeepSpeed is told where a pass begins."""
        return work()

    # ---- adapters ---------------------------------------------------------------------------------

    def add_adapter(self, name: str, settings: LoraSettings | StoredAdapter, *, seed: int) -> None:
        super().add_adapter(name, settings, seed=seed)
        self.fused.adapters_changed()
        self.trunk_depth = lowest_adapted(self.layers, len(self._lora_layers))

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
        no mask is needed, and what comes out over padding means nothing. Where the layers can take
        packed rows, padding is never computed.

        With `trunk_BLH`, what `run_trunk` returned for the same rows, only the layers above the trunk run.
        With `wanted_M`, places in the flattened (B, L) input, only the states (M, H) there are returned.
        """
        batch = _token_batch(batch)
        first = 0 if trunk_BLH is None else self.trunk_depth
        if not self._router.can_pack():
            whole = ForwardPass(self._role, first=first, entry_BLH=trunk_BLH, recompute=self._recompute)
            hidden_BLH = self._router.run(batch.ids_BL, whole)
            return hidden_BLH if wanted_M is None else hidden_BLH.flatten(0, 1).index_select(0, wanted_M)
        packing = batch.packing
        packed = ForwardPass(
            self._role,
            first=first,
            entry_BLH=None if trunk_BLH is None else packing.pack(trunk_BLH),
            packing=packing,
            wanted_M=None if wanted_M is None else packing.numbers_of(wanted_M),
            recompute=self._recompute,
        )
        hidden_NH = self._router.run(packing.pack(batch.ids_BL), packed)[0]
        return packing.unpack(hidden_NH) if wanted_M is None else hidden_NH

    @torch.no_grad()
    def run_trunk(self, batch: Tensor | TokenBatch) -> Tensor | None:
        """States (B, L, H) that enter the lowest layer with an adapter; None where that is the first layer.

        They are the same in every role, because nothing below has an adapter. Rows as in `hidden`.
        """
        if not 0 < self.trunk_depth < len(self.layers):
            return None
        batch = _token_batch(batch)
        if not self._router.can_pack():
            return self._router.run(batch.ids_BL, ForwardPass(self._role, stop=self.trunk_depth))
        packing = batch.packing
        packed = ForwardPass(self._role, stop=self.trunk_depth, packing=packing)
        return packing.unpack(self._router.run(packing.pack(batch.ids_BL), packed)[0])

    def next_hidden(self, input_ids_BQ: Tensor, mask_BC: Tensor, cache: Cache) -> Tensor:
        """Last hidden states (B, Q, H) of tokens that follow what `cache` holds, which grows by them.

        `mask_BC` says which of the cache's columns, the new ones included, hold tokens of a row. A row's
        tokens lie next to each other; several new ones end in the last column.
        """
        return self._cached_decoder.next_hidden(input_ids_BQ, mask_BC, cache)

    def new_cache(self) -> Cache:
        """A cache that holds nothing yet, with layers of the kinds that the model asks for."""
        return self._cached_decoder.new_cache()

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits (N, V) in fp32: those of the base's own forward pass.

        Those of ids without a token are far below all others: see `rlhf.model.vocabulary`.
        """
        return exclude(self._output_head.logits(hidden_NH), self._unsampled)

    def logprobs(self, hidden_NH: Tensor, targets_N: Tensor, *, temperature: float) -> Tensor:
        """Log-probability (N,) of the next token, nats, under softmax(logits / temperature).

        Beyond a moderate size the (N, V) logits exist one chunk at a time, in the backward pass too.
        """
        return self._output_head.logprobs(
            hidden_NH, targets_N, temperature=temperature, excluded=self._unsampled
        )

    def scalar(self, head: str, hidden_NH: Tensor) -> Tensor:
        """The head's output (N,) in fp32."""
        output_N: Tensor = self.heads[head](hidden_NH.float()).squeeze(-1)
        return output_N

    def enable_gradient_checkpointing(self) -> None:
        """Recompute layers in the backward pass, each in the role that its forward pass ran in."""
        self._router.prepare_recomputing(self.model)
        self._recompute = True

    # ---- export -----------------------------------------------------------------------------------

    def export_adapter(
        self, name: str, folder: Path, *, task_type: str, base_path: str, head: str | None = None
    ) -> None:
        super().export_adapter(name, folder, task_type=task_type, base_path=base_path, head=head)
        self.tokenizer.save_pretrained(str(folder))

    def merged(self, name: str) -> "Backbone":
        """Base + adapter as one plain model: a second copy on the CPU, in the type that the base has on disk.

        The sum is made in fp32 and rounded once. The weights in memory are not touched: merging into low
        precision and taking out again drifts.
        """
        remote = self._model_settings is not None and self._model_settings.trust_remote_code
        copy = AutoModelForCausalLM.from_pretrained(self.path, dtype="auto", trust_remote_code=remote)
        config = self._config(self.adapters[name], task_type="CAUSAL_LM")
        plain = add_adapter_to_weights(copy, name, config, self.adapter_parameters(name))
        return Backbone(plain, self.tokenizer, self.path)

    def save(self, folder: Path) -> None:
        """Write the base itself as a plain model, with its tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _token_batch(batch: Tensor | TokenBatch) -> TokenBatch:
    return batch if isinstance(batch, TokenBatch) else TokenBatch(batch)

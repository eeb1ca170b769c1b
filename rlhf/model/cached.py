"""The decoder with a cache: the last states of tokens that follow those which the cache holds."""

import inspect
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from rlhf.model.architecture import cache_argument, decoder_layers, decoder_of, has_plain_cache

# Shapes: B sequences, Q new tokens, C columns of the cache with the new ones, H hidden size.


class CachedDecoder:
    """Runs new tokens of sequences in the way that the model's architecture asks for."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._decoder = decoder_of(model)
        self._cache_argument = cache_argument(model)
        self._is_recurrent = all(self.new_cache().is_linear)
        """Whether no layer looks at earlier tokens: nothing is left for a mask to hide after the prompt."""
        is_plain = has_plain_cache(model, len(decoder_layers(model)))
        self._takes_4d_mask = is_plain and model.config._attn_implementation == "sdpa"
        self._takes_positions = "position_ids" in inspect.signature(self._decoder.forward).parameters

    @property
    def takes_cache(self) -> bool:
        """Whether the decoder takes a cache at all."""
        return self._cache_argument is not None

    def new_cache(self) -> Cache:
        """A cache that holds nothing yet, with layers of the kinds that the model asks for."""
        return DynamicCache(config=self._model.config)

    def next_hidden(self, input_ids_BQ: Tensor, mask_BC: Tensor, cache: Cache) -> Tensor:
        """Last hidden states (B, Q, H) of tokens that follow what `cache` holds, which grows by them.

        `mask_BC` says which of the cache's columns, the new ones included, hold tokens of a row. A row's
        tokens lie next to each other; several new ones end in the last column.
        """
        num_new = input_ids_BQ.shape[1]
        mask: Tensor | None = mask_BC
        if num_new == 1 and self._is_recurrent:
            mask = None  # Mamba would multiply the new token's state with all columns of it
        elif num_new == 1 and self._takes_4d_mask:
            mask = mask_BC[:, None, None, :]  # as attention wants it: nothing is left to make
        extra: dict[str, Any] = {}
        if self._takes_positions:
            alone = num_new == 1
            counts = mask_BC.sum(1, keepdim=True) if alone else mask_BC.long().cumsum(-1)[:, -num_new:]
            extra["position_ids"] = (counts - 1).clamp_(min=0)
        if self._cache_argument is not None:
            extra[self._cache_argument] = cache
        output = self._decoder(input_ids=input_ids_BQ, attention_mask=mask, use_cache=True, **extra)
        hidden_BQH: Tensor = output.last_hidden_state
        return hidden_BQH


def keep_rows(cache: Cache, rows_N: Tensor) -> None:
    """Leave only `rows_N` in the cache.

    By the method that beam search uses, which every kind of layer has. The one that only selects rows is
    missing in recurrent layers, and in hybrid ones it selects keys and values but no recurrent states.
    """
    cache.reorder_cache(cast(torch.LongTensor, rows_N))

"""The sampler's own decoder and cache, run on a backbone without memory."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from plan.inputs import Run, token_ids, token_mask
from plan.ledger import ACTIVATIONS, KV_CACHE, LOGITS, Ledger
from rlhf.model.backbone import Backbone
from rlhf.sampling.draws import Draws
from rlhf.sampling.fixed_step import fixed_shapes_pay
from rlhf.sampling.local import SlotDecoder
from rlhf.settings.groups import SamplingSettings

# Shapes: S slots, V vocabulary.

_DECODING = "decoding"


def sampling(
    num_rows: int, prompt_tokens: int, settings: SamplingSettings, *, role: str, on_cuda: bool = False
) -> Run:
    """A prompt pass for all slots, the last step of the longest responses, prompts next to a cache in use."""
    num_slots = min(settings.batch_size, num_rows)
    longest = prompt_tokens + settings.max_response_tokens
    without_stop = settings.model_copy(update={"stop": []})  # there is no text to look for one in
    # That one row waits makes the cache as large as any number does, and the draws no larger than they must
    # be.
    planned_rows = min(num_rows, num_slots + 1)
    prompts = [[0] * prompt_tokens] * planned_rows
    if num_slots > 1 and prompt_tokens > 1:
        prompts[0] = prompts[0][1:]  # not all tokens are real: then attention needs a mask
    fixed_shapes = fixed_shapes_pay(torch.device("cuda" if on_cuda else "cpu"), settings)

    def run(backbone: Backbone, ledger: Ledger) -> None:
        if not backbone.has_plain_cache:
            _decode_whole_sequences(backbone, ledger, num_slots, longest, role)
            return
        uniforms = torch.zeros(planned_rows, settings.max_response_tokens, dtype=torch.float64)
        draws = Draws(backbone, prompts, uniforms, without_stop)
        decoder = SlotDecoder(backbone, prompts, draws, without_stop, fixed_shapes=fixed_shapes)
        slots = torch.arange(num_slots)
        with backbone.role(role), torch.inference_mode(), _booked_head(backbone, ledger):
            _admit(decoder, ledger, slots, "prompts")
            # The longest rows before their last step, at the end of the cache.
            columns = decoder.kv.columns
            columns.begin = columns.capacity - longest
            columns.end = columns.capacity - 1
            captured = _step(decoder, ledger, slots)
            if num_rows > num_slots:
                _admit(decoder, ledger, slots, "refill")
            del captured

    return run


def _admit(decoder: SlotDecoder, ledger: Ledger, slots: Tensor, name: str) -> None:
    """Prompts into all slots, in the decoder's two halves: two sections, as depth moves their peaks apart."""
    cache = Cache(layers=[_BookedLayer(ledger) for _ in decoder.backbone.layers])
    with ledger.section(name):
        prompts = decoder.run_prompts(range(len(slots)), cache)
    ledger.book(KV_CACHE)
    with ledger.section(f"{name}, laid in"):
        decoder.lay_in(slots, prompts)
    ledger.book(ACTIVATIONS)


def _step(decoder: SlotDecoder, ledger: Ledger, slots: Tensor) -> Tensor | None:
    """One step of all slots; what a captured graph keeps of it for the steps to come."""
    captured: Tensor | None = None
    before = ledger.alive.total()
    with ledger.section(_DECODING):
        if decoder.kv.columns.current is None:
            decoder.step(slots)
        else:
            # A graph keeps all the memory that its step took at once, and what is drawn from is a copy.
            shape = decoder.next_logits().shape
            captured = torch.empty(ledger.peaks[_DECODING].total() - before, dtype=torch.uint8)
            decoder.draw(slots, torch.zeros(shape))
    ledger.book(ACTIVATIONS)
    return captured


def _decode_whole_sequences(
    backbone: Backbone, ledger: Ledger, num_rows: int, longest: int, role: str
) -> None:
    """The sampler's way with caches that are not plain, which grow: here as one pass over whole sequences."""
    cache = backbone.new_cache()
    mask = token_mask(num_rows, longest).bool()
    with backbone.role(role), torch.inference_mode(), ledger.section(_DECODING):
        hidden = backbone.next_hidden(token_ids(num_rows, longest), mask, cache)
        ledger.book(LOGITS)
        backbone.logits(hidden[:, -1])


@contextlib.contextmanager
def _booked_head(backbone: Backbone, ledger: Ledger) -> Iterator[None]:
    """Inside the block, what appears from the output head's call on is booked under the logits."""
    head: Any = backbone.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda *_: ledger.book(LOGITS))
    try:
        yield
    finally:
        handle.remove()


class _BookedLayer(DynamicLayer):
    """A layer of the KV cache whose keys and values are booked as such from the start."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger = ledger

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(*args, **kwargs)
        self._ledger.rebook(keys, KV_CACHE)
        self._ledger.rebook(values, KV_CACHE)
        return keys, values

"""Decoding with the backbone's own weights.

The noise of a token is a function of (seed, key, position) alone (`noise`), and `Draws` keeps by row what
is drawn. So how rows are batched changes the speed and nothing else, and there are two ways. `SlotDecoder`,
where every layer's cache simply holds all keys and values: rows decode next to each other in the slots of
one cache (`kv_slots`), and a slot whose row has ended takes the next waiting prompt. `_decode_in_batches`,
for all other caches (windows, recurrent states): batch after batch. There a recurrent state may also see the
padding before a prompt, or have to stay when its row has ended: `Backbone.cache_use` has tried it.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from rlhf.model.backbone import Backbone
from rlhf.model.batching import pad
from rlhf.model.cached import keep_rows
from rlhf.parallel.world import world
from rlhf.sampling.draws import Draws
from rlhf.sampling.fixed_step import FixedStep, fixed_shapes_pay
from rlhf.sampling.kv_slots import Columns, KVSlots, columns_for
from rlhf.sampling.noise import Key, uniforms
from rlhf.sampling.rollouts import Rollouts
from rlhf.settings.groups import SamplingSettings

# Shapes: R rows to be sampled, S slots that decode together, N of them, P prompt tokens (left-padded),
# H hidden size, V vocabulary.

REFILL_SHARE = 0.25
"""Waiting prompts are admitted once this share of the slots is free: a prompt alone is a slow pass."""
SHRINK_SHARE = 0.75
"""With nothing left to wait, the slots that are still at work move together once they are fewer than this."""
_FREE = -1


def sample(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    role: str,
    settings: SamplingSettings,
    keys: Sequence[Key],
    seed: int,
) -> Rollouts:
    """`rlhf.sampling.engine.sample`, by the backbone in this process."""
    uniforms_RT = uniforms(seed, keys, settings.max_response_tokens).to(backbone.device)
    # Made outside of inference mode: what is made inside can take no part in training.
    draws = Draws(backbone, prompts, uniforms_RT, settings)
    # Prompts that are run together are padded to the longest: so those of like length go together.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    with backbone.role(role), torch.inference_mode():
        if backbone.has_plain_cache and backbone.cache_use.padded_prompts:
            # A captured step runs no Python when it is replayed, and so would gather no layer's weights.
            fixed_shapes = fixed_shapes_pay(backbone.device, settings) and not world().passes_are_collectives
            SlotDecoder(backbone, prompts, draws, settings, fixed_shapes=fixed_shapes).run(order)
        else:
            _decode_in_batches(backbone, prompts, draws, order, settings)
    return draws.rollouts()


@dataclass(frozen=True)
class PromptPass:
    """Prompts that have been through the model in a cache of their own."""

    rows: Sequence[int]
    mask_NP: Tensor
    cache: Cache
    hidden_NPH: Tensor


class SlotDecoder:
    """Slots that decode together, and the prompts that wait for one.

    `run` decides which slots take or lose a row, and has to know what was drawn to do so. What it calls,
    `admit` and `step`, is work on tensors whose shapes alone matter, and can be run by itself.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        draws: Draws,
        settings: SamplingSettings,
        *,
        fixed_shapes: bool,
    ) -> None:
        self.backbone = backbone
        self.prompts = prompts
        self.draws = draws
        self.device = backbone.device
        self.num_slots = min(settings.batch_size, len(prompts))
        longest_prompt = max(len(ids) for ids in prompts)
        refills = len(prompts) > self.num_slots
        capacity = columns_for(longest_prompt, settings.max_response_tokens, refills=refills)
        columns = Columns(self.num_slots, capacity, fixed_shapes=fixed_shapes, device=self.device)
        self.kv = KVSlots(columns, num_layers=len(backbone.layers), longest_prompt=longest_prompt)
        self.rows_S = torch.full((self.num_slots,), _FREE, dtype=torch.long, device=self.device)
        """The row that decodes in each slot; -1 in a free one."""
        self.tokens_S = torch.zeros(self.num_slots, dtype=torch.long, device=self.device)
        """The last token of each slot, which the next step feeds."""
        self._fixed_step = FixedStep(self.device)

    def run(self, order: Sequence[int]) -> None:
        """Sample the rows in `order`."""
        waiting = list(order)
        while True:
            free = (self.rows_S == _FREE).nonzero().squeeze(1)
            if waiting and (len(free) == self.num_slots or len(free) >= REFILL_SHARE * self.num_slots):
                slots = free[: len(waiting)]
                finished = self.admit(slots, waiting[: len(free)])
                self._release(slots[finished])
                del waiting[: len(free)]
                continue
            if len(free) == len(self.rows_S):
                return
            if not waiting and len(free) >= (1 - SHRINK_SHARE) * len(self.rows_S):
                self._shrink()
            busy_S = self.rows_S != _FREE
            self.kv.make_room(busy_S)
            slots = busy_S.nonzero().squeeze(1)
            finished = self.step(slots)
            self._release(slots[finished])

    def admit(self, slots_N: Tensor, rows: Sequence[int]) -> Tensor:
        """Put `rows` into `slots_N` and draw their first tokens; which of them are finished with it."""
        return self.lay_in(slots_N, self.run_prompts(rows, self.backbone.new_cache()))

    def run_prompts(self, rows: Sequence[int], cache: Cache) -> PromptPass:
        """The first half of `admit`: the prompts of `rows` through the model, into `cache`.

        A cache of their own, because a pass over the slots' would make every slot as many tokens longer.
        """
        prompts = [self.prompts[row] for row in rows]
        ids_NP, mask_NP = pad(prompts, self.backbone.pad_id, self.device, left=True)
        hidden_NPH = self.backbone.next_hidden(ids_NP, mask_NP, cache)
        return PromptPass(rows, mask_NP, cache, hidden_NPH)

    def lay_in(self, slots_N: Tensor, prompts: PromptPass) -> Tensor:
        """The second half of `admit`: the prompts' keys and values into `slots_N`, and the first tokens."""
        self.kv.lay_in(slots_N, prompts.cache, prompts.mask_NP)
        self.rows_S[slots_N] = torch.tensor(prompts.rows, device=self.device)
        return self.draw(slots_N, self.backbone.logits(prompts.hidden_NPH[:, -1]))

    def step(self, slots_N: Tensor) -> Tensor:
        """Feed every slot its last token and draw the next in `slots_N`; which of these are finished now.

        Free slots are fed as well: leaving them out would gather the whole cache in each step.
        """
        self.kv.columns.advance()
        if self.kv.columns.current is None:
            return self.draw(slots_N, self.backbone.logits(self._next_hidden()[slots_N, -1]))
        return self.draw(slots_N, self._fixed_step(self.next_logits)[slots_N])

    def next_logits(self) -> Tensor:
        """Logits (S, V) after every slot's last token: the whole of a fixed step."""
        return self.backbone.logits(self._next_hidden()[:, -1])

    def draw(self, slots_N: Tensor, logits_NV: Tensor) -> Tensor:
        """Draw the next tokens of `slots_N`; which of them are finished now."""
        tokens_N, finished_N = self.draws.draw(self.rows_S[slots_N], logits_NV)
        self.tokens_S[slots_N] = tokens_N
        return finished_N

    def _next_hidden(self) -> Tensor:
        """Last hidden states (S, 1, H) of every slot's last token."""
        return self.backbone.next_hidden(self.tokens_S.unsqueeze(1), self.kv.columns.window_SC, self.kv.cache)

    def _release(self, slots_N: Tensor) -> None:
        self.rows_S[slots_N] = _FREE
        self.kv.release(slots_N)

    def _shrink(self) -> None:
        """Keep only the slots that are at work, unless shapes must stay."""
        if self.kv.columns.current is not None:
            return
        keep = (self.rows_S != _FREE).nonzero().squeeze(1)
        self.kv.keep(keep)
        self.rows_S = self.rows_S[keep]
        self.tokens_S = self.tokens_S[keep]


def _decode_in_batches(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    draws: Draws,
    order: Sequence[int],
    settings: SamplingSettings,
) -> None:
    """The plain path, for every kind of cache: batch after batch, each until its last row has ended."""
    use = backbone.cache_use
    for batch in _batches(prompts, order, settings.batch_size, mixed_lengths=use.padded_prompts):
        rows = torch.tensor(batch, device=backbone.device)
        ids, mask = pad([prompts[row] for row in batch], backbone.pad_id, backbone.device, left=True)
        cache = backbone.new_cache()
        busy = torch.ones(len(rows), dtype=torch.bool, device=backbone.device)
        while True:
            hidden = backbone.next_hidden(ids, mask, cache)
            slots = busy.nonzero().squeeze(1)
            tokens, finished = draws.draw(rows[slots], backbone.logits(hidden[slots, -1]))
            ids = torch.zeros(len(rows), 1, dtype=torch.long, device=backbone.device)
            ids[slots, 0] = tokens
            busy[slots[finished]] = False
            if not bool(busy.any()):
                break
            # Taking rows out copies the cache: worth it only once enough of them have ended.
            if use.fewer_rows and int(busy.sum()) <= SHRINK_SHARE * len(busy):
                keep = busy.nonzero().squeeze(1)
                keep_rows(cache, keep)
                rows, ids, mask, busy = rows[keep], ids[keep], mask[keep], busy[keep]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


def _batches(
    prompts: Sequence[Sequence[int]], order: Sequence[int], batch_size: int, *, mixed_lengths: bool
) -> Iterator[list[int]]:
    """The rows in `order`, which sorts them by the length of their prompts, in batches."""
    if mixed_lengths:
        groups = [list(order)]
    else:
        groups = [list(rows) for _, rows in itertools.groupby(order, key=lambda row: len(prompts[row]))]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]

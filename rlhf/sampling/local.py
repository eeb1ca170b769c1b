"""Sampling from a role of the backbone.

The noise of a token is a function of (seed, key, position) alone, where a row's key says which iteration,
prompt and sample it is. What is drawn therefore does not depend on how rows are batched or ordered, or on
when a neighbour finishes.

Rows decode side by side in the slots of a KV cache that is made once. All of them write into the same
column, so a row's tokens lie next to each other and end in the current column, wherever they began; rotary
and learned positions are told to the model and need not be the columns. A slot whose row has ended takes the
next waiting prompt, which is run on its own and then laid into the columns before the current one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from rlhf.model.backbone import Backbone
from rlhf.model.chat import decode_completion
from rlhf.sampling.rollouts import Rollouts, pad_left
from rlhf.settings.groups import SamplingSettings

# Shapes: R rows to be sampled, S slots that decode together, T response tokens, C columns of the KV cache,
# P prompt tokens (left-padded), V vocabulary.

Key = tuple[int, ...]

REFILL_SHARE = 0.25
"""Waiting prompts are admitted once this share of the slots is free: a prompt alone is a slow pass."""
_MIN_STEPS_TO_CAPTURE = 16
SHRINK_SHARE = 0.75
"""With nothing left to wait, the slots that are still at work move together once they are fewer than this."""


def sample(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    role: str,
    settings: SamplingSettings,
    keys: Sequence[Key],
    seed: int,
) -> Rollouts:
    """Draw one response for every prompt from `role`.

    `keys[i]` (iteration, prompt, sample) together with `seed` and the position determines row i's noise. The
    rows come back in the order given.
    """
    assert len(prompts) == len(keys)
    uniforms_RT = noise(seed, keys, settings.max_response_tokens).to(backbone.device)
    drawn = _Drawn(backbone, prompts, uniforms_RT, settings)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    with backbone.role(role), torch.inference_mode():
        if backbone.has_plain_cache:
            _Decoder(backbone, prompts, drawn, settings).run(order)
        else:
            _decode_in_batches(backbone, prompts, drawn, order, settings)
    return drawn.rollouts()


def noise(seed: int, keys: Sequence[Key], num_positions: int) -> Tensor:
    """Uniform numbers (R, num_positions) in [0, 1), float64: a hash of (seed, key, position) each.

    SplitMix64's finalizer (Steele, Lea, Flood 2014) is applied once per integer of the key.
    """
    state = np.full((len(keys), 1), np.uint64(seed), dtype=np.uint64)
    for part in np.array(keys, dtype=np.uint64).reshape(len(keys), -1).T:
        state = _mix(state ^ _mix(part[:, None]))
    bits = _mix(state ^ _mix(np.arange(num_positions, dtype=np.uint64)[None, :]))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class _Drawn:
    """The tokens that have been drawn for every row, and the drawing of the next ones."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        uniforms_RT: Tensor,
        settings: SamplingSettings,
    ) -> None:
        self._backbone, self._prompts, self._settings = backbone, prompts, settings
        self._uniforms_RT = uniforms_RT
        self._eos = torch.tensor(backbone.eos_ids, device=backbone.device)
        self._tokens_RT = torch.zeros(uniforms_RT.shape, dtype=torch.long, device=backbone.device)
        self._logprobs_RT = torch.zeros(uniforms_RT.shape, device=backbone.device)
        self._entropies_RT = torch.zeros(uniforms_RT.shape, device=backbone.device)
        self.lengths_R = torch.zeros(len(prompts), dtype=torch.long, device=backbone.device)
        self._ended_R = torch.zeros(len(prompts), dtype=torch.bool, device=backbone.device)

    def draw(self, rows: Tensor, logits_V: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the next token of `rows` from their logits; the tokens, and which rows are finished now.

        Inverts the cumulative distribution at each row's uniform number of this position.
        """
        places = self.lengths_R[rows]
        logprobs_V = torch.log_softmax(logits_V / self._settings.temperature, dim=-1)
        self._entropies_RT[rows, places] = -logprobs_V.exp().mul_(logprobs_V).sum(-1)
        cumulative_V = logprobs_V.double().exp_().cumsum_(-1)
        targets = self._uniforms_RT[rows, places].unsqueeze(1) * cumulative_V[:, -1:]
        tokens = torch.searchsorted(cumulative_V, targets, right=True).clamp_(max=logits_V.shape[1] - 1)
        self._logprobs_RT[rows, places] = logprobs_V.gather(1, tokens).squeeze(1)
        tokens = tokens.squeeze(1)
        self._tokens_RT[rows, places] = tokens
        self.lengths_R[rows] = places + 1
        ended = torch.isin(tokens, self._eos)
        if self._settings.stop:
            ended |= self._stopped(rows)
        self._ended_R[rows] = ended
        return tokens, ended | (places + 1 == self._tokens_RT.shape[1])

    def rollouts(self) -> Rollouts:
        width = int(self.lengths_R.max())
        mask_RT = torch.arange(width, device=self.lengths_R.device) < self.lengths_R[:, None]
        prompt_ids, prompt_mask = pad_left(self._prompts, self._backbone.pad_id, self._backbone.device)
        return Rollouts(
            prompt_ids_BP=prompt_ids,
            prompt_mask_BP=prompt_mask,
            response_ids_BT=torch.where(mask_RT, self._tokens_RT[:, :width], self._backbone.pad_id),
            response_mask_BT=mask_RT,
            sampled_logprobs_BT=self._logprobs_RT[:, :width],
            sampled_entropy_BT=self._entropies_RT[:, :width],
            ended_B=self._ended_R,
        )

    def _stopped(self, rows: Tensor) -> Tensor:
        found = []
        for row, length in zip(rows.tolist(), self.lengths_R[rows].tolist(), strict=True):
            ids = self._tokens_RT[row, :length].tolist()
            text = decode_completion(self._backbone.tokenizer, list(self._prompts[row]), ids)
            found.append(any(string in text for string in self._settings.stop))
        return torch.tensor(found, device=rows.device)


class _Columns:
    """Where all layers of the cache write and read: one current column, for all slots."""

    def __init__(self, num_slots: int, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.begin, self.end = 0, 0
        """The columns that any slot still needs are those from `begin` on and before `end`."""
        self.valid_SC = torch.zeros((num_slots, capacity), dtype=torch.bool, device=device)
        self.current: Tensor | None = None
        """The column to write into, on the device, where shapes must stay: then all columns are read."""

    @property
    def window_SC(self) -> Tensor:
        """Which of the columns that attention reads hold tokens."""
        return self.valid_SC if self.current is not None else self.valid_SC[:, self.begin : self.end]

    def advance(self) -> None:
        """Go on to the next column, in which every slot will have a token."""
        self.valid_SC[:, self.end] = True
        if self.current is not None:
            self.current.fill_(self.end)
        self.end += 1


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values: S slots × C columns, written one column at a time."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, columns: _Columns) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns = columns

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        slots, columns = self.columns.valid_SC.shape
        for name, states in (("keys", key_states), ("values", value_states)):
            setattr(self, name, states.new_zeros((slots, states.shape[1], columns, states.shape[3])))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        begin, end = self.columns.begin, self.columns.end
        if self.columns.current is not None:
            self.keys.index_copy_(2, self.columns.current, key_states)
            self.values.index_copy_(2, self.columns.current, value_states)
            return self.keys, self.values
        self.keys[:, :, end - 1 : end] = key_states
        self.values[:, :, end - 1 : end] = value_states
        return self.keys[:, :, begin:end], self.values[:, :, begin:end]

    def put(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Lay whole prompts into the columns that end before the current one."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        start = self.columns.end - keys.shape[2]
        self.keys[slots, :, start : self.columns.end] = keys
        self.values[slots, :, start : self.columns.end] = values

    def move(self, start: int, to: int, width: int) -> None:
        """Move `width` columns, which begin at `start`, so that they begin at `to`."""
        self.keys[:, :, to : to + width] = self.keys[:, :, start : start + width].clone()
        self.values[:, :, to : to + width] = self.values[:, :, start : start + width].clone()

    def select(self, slots: Tensor) -> None:
        self.keys, self.values = self.keys[slots], self.values[slots]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns.window_SC.shape[1], 0

    def get_seq_length(self) -> int:
        return self.columns.window_SC.shape[1] - 1

    def get_max_length(self) -> int:
        return self.columns.capacity


class _Decoder:
    """Slots that decode together, and the prompts that wait for one."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        drawn: _Drawn,
        settings: SamplingSettings,
    ) -> None:
        self.backbone, self.prompts, self.drawn, self.settings = backbone, prompts, drawn, settings
        self.device = backbone.device
        self.num_slots = min(settings.batch_size, len(prompts))
        self.longest_prompt = max(len(ids) for ids in prompts)
        longest = self.longest_prompt + settings.max_response_tokens
        room = 0 if len(prompts) <= self.num_slots else max(16, longest // 2)
        self.columns = _Columns(self.num_slots, longest + room, self.device)
        self.columns.end = self.longest_prompt
        self.layers = [_SlotLayer(self.columns) for _ in backbone.layers]
        self.cache = Cache(layers=list(self.layers))
        self.rows_S = torch.full((self.num_slots,), -1, dtype=torch.long, device=self.device)
        """The row that decodes in each slot; -1 in a free one."""
        self.tokens_S = torch.zeros(self.num_slots, dtype=torch.long, device=self.device)
        self.first_S = torch.zeros(self.num_slots, dtype=torch.long, device=self.device)
        """The column in which each slot's row begins."""
        self.steps: _FixedSteps | None = None
        if fixed_shapes_pay(self.device, settings):
            self.columns.current = torch.zeros(1, dtype=torch.long, device=self.device)

    def run(self, order: Sequence[int]) -> None:
        """Sample the rows in `order`."""
        waiting = list(order)
        while True:
            free = (self.rows_S < 0).nonzero().squeeze(1)
            if waiting and (len(free) == self.num_slots or len(free) >= REFILL_SHARE * self.num_slots):
                self._admit(free[: len(waiting)], waiting[: len(free)])
                del waiting[: len(free)]
                continue
            if len(free) == len(self.rows_S):
                return
            spare = not waiting and len(free) >= (1 - SHRINK_SHARE) * len(self.rows_S)
            if spare and self.columns.current is None:
                self._shrink()
            self._step()

    def _admit(self, slots: Tensor, rows: list[int]) -> None:
        """Run the prompts of `rows`, lay them into `slots`, and draw their first tokens."""
        ids, mask = pad_left([self.prompts[row] for row in rows], self.backbone.pad_id, self.device)
        width = ids.shape[1]
        cache = DynamicCache(config=self.backbone.model.config)
        hidden = self.backbone.next_hidden(ids, mask, cache)
        for layer, given in zip(self.layers, cache.layers, strict=True):
            assert isinstance(given, DynamicLayer)
            assert given.keys is not None
            assert given.values is not None
            layer.put(slots, given.keys, given.values)
        self.columns.valid_SC[slots] = False
        self.columns.valid_SC[slots, self.columns.end - width : self.columns.end] = mask
        self.rows_S[slots] = torch.tensor(rows, device=self.device)
        self.first_S[slots] = self.columns.end - mask.sum(1)
        self._draw(slots, self.backbone.logits(hidden[:, -1]))

    def _step(self) -> None:
        """Feed every slot its last token and draw the next one."""
        busy = self.rows_S >= 0
        self.columns.begin = int(self.first_S[busy].min())
        if self.columns.end == self.columns.capacity:
            self._make_room()
        self.columns.advance()
        slots = busy.nonzero().squeeze(1)
        if self.columns.current is None:
            hidden = self._hidden()
            self._draw(slots, self.backbone.logits(hidden[slots, -1]))
        else:
            self.steps = self.steps or _FixedSteps(self)
            self._draw(slots, self.steps.logits()[slots])

    def _hidden(self) -> Tensor:
        """Last hidden states (S, 1, H) of every slot's last token."""
        return self.backbone.next_hidden(self.tokens_S.unsqueeze(1), self.columns.window_SC, self.cache)

    def next_logits(self) -> Tensor:
        """Logits (S, V) after every slot's last token."""
        return self.backbone.logits(self._hidden()[:, -1])

    def _draw(self, slots: Tensor, logits: Tensor) -> None:
        tokens, finished = self.drawn.draw(self.rows_S[slots], logits)
        self.tokens_S[slots] = tokens
        self.rows_S[slots[finished]] = -1
        self.columns.valid_SC[slots[finished]] = False  # so that its position stays in the context

    def _make_room(self) -> None:
        """Move the columns in use to the front, as far as the longest prompt still fits before their end."""
        start, width = self.columns.begin, self.columns.end - self.columns.begin
        to = max(0, self.longest_prompt - width)
        for layer in self.layers:
            layer.move(start, to, width)
        valid = self.columns.valid_SC
        moved = valid[:, start : start + width].clone()
        valid.fill_(False)
        valid[:, to : to + width] = moved
        self.first_S += to - start
        self.columns.begin, self.columns.end = to, to + width

    def _shrink(self) -> None:
        """Keep only the slots that are at work."""
        keep = (self.rows_S >= 0).nonzero().squeeze(1)
        for layer in self.layers:
            layer.select(keep)
        self.columns.valid_SC = self.columns.valid_SC[keep]
        self.rows_S, self.tokens_S = self.rows_S[keep], self.tokens_S[keep]
        self.first_S = self.first_S[keep]


def fixed_shapes_pay(device: torch.device, settings: SamplingSettings) -> bool:
    """Whether to decode in steps of one shape, captured once and replayed: on CUDA, from a few steps on."""
    return device.type == "cuda" and settings.max_response_tokens >= _MIN_STEPS_TO_CAPTURE


class _FixedSteps:
    """Decoding steps of one shape over all slots and columns, on CUDA replayed from one captured graph.

    A captured step reads and writes the decoder's own tensors; nothing may put others in their place.
    """

    def __init__(self, decoder: _Decoder) -> None:
        self._next_logits = decoder.next_logits
        self._graph: torch.cuda.CUDAGraph | None = None
        if decoder.device.type != "cuda":
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels choose their algorithms before the capture
            for _ in range(2):
                self._next_logits()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._logits = self._next_logits()
        except RuntimeError as error:
            print(f"sampling: this model's steps cannot be captured, and run as they are ({error})")
        else:
            self._graph = graph

    def logits(self) -> Tensor:
        """Logits (S, V) of the next step."""
        if self._graph is None:
            return self._next_logits()
        self._graph.replay()
        return self._logits


def _decode_in_batches(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    drawn: _Drawn,
    order: Sequence[int],
    settings: SamplingSettings,
) -> None:
    """The plain path, for every kind of cache: batch after batch, each until its last row has ended."""
    for start in range(0, len(order), settings.batch_size):
        rows = torch.tensor(order[start : start + settings.batch_size], device=backbone.device)
        ids, mask = pad_left([prompts[row] for row in rows.tolist()], backbone.pad_id, backbone.device)
        cache = DynamicCache(config=backbone.model.config)
        busy = torch.ones(len(rows), dtype=torch.bool, device=backbone.device)
        while True:
            hidden = backbone.next_hidden(ids, mask, cache)
            slots = busy.nonzero().squeeze(1)
            tokens, finished = drawn.draw(rows[slots], backbone.logits(hidden[slots, -1]))
            ids = torch.zeros(len(rows), 1, dtype=torch.long, device=backbone.device)
            ids[slots, 0] = tokens
            busy[slots[finished]] = False
            if not bool(busy.any()):
                break
            if int(busy.sum()) <= SHRINK_SHARE * len(busy):
                keep = busy.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                rows, ids, mask, busy = rows[keep], ids[keep], mask[keep], busy[keep]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)

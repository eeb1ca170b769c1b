"""A KV cache of slots: made once, for rows that begin and end at different times.

A plain cache belongs to one batch: rows that have ended keep their place until the last one ends. Here a
slot whose row has ended takes another row. All slots write into the same column, the current one, so that a
step writes one slice and attention reads one window, whatever the rows' lengths. A row's tokens therefore
stand next to each other and end in the current column, wherever they began; its positions are counted by
its own tokens and told to the model, and need not be the columns.

    column   0  1  2  3  4  5  6  7       . free   p prompt   r response
    slot 0   .  p  p  p  r  r  r  r
    slot 1   .  .  .  .  .  p  p  r       a row that came later, laid in before the current column
"""

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

# Shapes: S slots, N of them, C columns, P columns of the longest of some prompts (left-padded).

_LEAST_ROOM = 16
"""Columns beyond the longest row that a cache whose slots are refilled has at least."""


class Columns:
    """Where all layers of the cache write and read: one current column, for all slots."""

    def __init__(self, num_slots: int, capacity: int, *, fixed_shapes: bool, device: torch.device) -> None:
        self.capacity = capacity
        self.begin = 0
        self.end = 0
        """The columns that any slot still needs are those from `begin` on and before `end`."""
        self.valid_SC = torch.zeros((num_slots, capacity), dtype=torch.bool, device=device)
        """Which columns hold a token of the slot's row."""
        self.first_S = torch.zeros(num_slots, dtype=torch.long, device=device)
        """The column in which each slot's row begins."""
        self.current = torch.zeros(1, dtype=torch.long, device=device) if fixed_shapes else None
        """The column to write into, on the device, where shapes must stay: then all columns are read.

        A captured step replays the same kernels on the same memory: a number of Python's would be built
        into it, and so would the size of a window that grows.
        """

    @property
    def window_SC(self) -> Tensor:
        """Which of the columns that attention reads hold tokens."""
        return self.valid_SC if self.current is not None else self.valid_SC[:, self.begin : self.end]

    def advance(self) -> None:
        """Go to the next column, in which every slot will have a token."""
        self.valid_SC[:, self.end] = True
        if self.current is not None:
            self.current.fill_(self.end)
        self.end += 1


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values: S slots × C columns, written one column at a time."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, columns: Columns) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns = columns

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for all slots and columns. Only the first states tell the heads, their size and type."""
        slots, columns = self.columns.valid_SC.shape
        for name, states in (("keys", key_states), ("values", value_states)):
            setattr(self, name, states.new_zeros((slots, states.shape[1], columns, states.shape[3])))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write every slot's new token into the current column; what attention reads."""
        begin, end = self.columns.begin, self.columns.end
        if self.columns.current is not None:
            self.keys.index_copy_(2, self.columns.current, key_states)
            self.values.index_copy_(2, self.columns.current, value_states)
            return self.keys, self.values
        self.keys[:, :, end - 1 : end] = key_states
        self.values[:, :, end - 1 : end] = value_states
        return self.keys[:, :, begin:end], self.values[:, :, begin:end]

    def put(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Lay whole prompts into the columns up to the current one."""
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
        """Keep only `slots`."""
        self.keys, self.values = self.keys[slots], self.values[slots]

    # What transformers asks of a layer when it makes masks and positions.

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns.window_SC.shape[1], 0

    def get_seq_length(self) -> int:
        return self.columns.window_SC.shape[1] - 1

    def get_max_length(self) -> int:
        return self.columns.capacity


class KVSlots:
    """The keys and values of all slots in all layers, as the model's cache."""

    def __init__(self, columns: Columns, *, num_layers: int, longest_prompt: int) -> None:
        self.columns = columns
        self._layers = [SlotLayer(columns) for _ in range(num_layers)]
        self.cache = Cache(layers=list(self._layers))
        # A prompt is laid in before the current column, so there must always be so many columns before it.
        self._longest_prompt = longest_prompt
        columns.end = longest_prompt

    def lay_in(self, slots_N: Tensor, given: Cache, mask_NP: Tensor) -> None:
        """Copy prompts, which were run in the cache `given`, into `slots_N`."""
        for layer, prompts in zip(self._layers, given.layers, strict=True):
            assert isinstance(prompts, DynamicLayer)
            assert prompts.keys is not None
            assert prompts.values is not None
            layer.put(slots_N, prompts.keys, prompts.values)
        columns = self.columns
        columns.valid_SC[slots_N] = False
        columns.valid_SC[slots_N, columns.end - mask_NP.shape[1] : columns.end] = mask_NP
        columns.first_S[slots_N] = columns.end - mask_NP.sum(1)

    def release(self, slots_N: Tensor) -> None:
        """No row is in `slots_N` any longer.

        They are fed tokens until they get another row, and count no column but those that are written from
        now on: so their positions start again at 0 and stay within the model's context.
        """
        self.columns.valid_SC[slots_N] = False

    def make_room(self, busy_S: Tensor) -> None:
        """Read no column before the first that a busy slot needs, and have one to go to."""
        self.columns.begin = int(self.columns.first_S[busy_S].min())
        if self.columns.end == self.columns.capacity:
            self._move_to_the_front()

    def keep(self, slots_N: Tensor) -> None:
        """Keep only `slots_N`."""
        for layer in self._layers:
            layer.select(slots_N)
        self.columns.valid_SC = self.columns.valid_SC[slots_N]
        self.columns.first_S = self.columns.first_S[slots_N]

    def _move_to_the_front(self) -> None:
        """Move the columns in use to the front, as far as the longest prompt still fits before their end."""
        columns = self.columns
        start = columns.begin
        width = columns.end - columns.begin
        to = max(0, self._longest_prompt - width)
        for layer in self._layers:
            layer.move(start, to, width)
        moved = columns.valid_SC[:, start : start + width].clone()
        columns.valid_SC.fill_(False)
        columns.valid_SC[:, to : to + width] = moved
        columns.first_S += to - start
        columns.begin = to
        columns.end = to + width


def columns_for(longest_prompt: int, max_response_tokens: int, *, refills: bool) -> int:
    """How many columns the cache has.

    The longest row fits in any case. Where slots are refilled, rows overlap and the current column never
    stops: room for half a row more means that columns are moved to the front only once in so many steps.
    """
    longest = longest_prompt + max_response_tokens
    return longest + (max(_LEAST_ROOM, longest // 2) if refills else 0)

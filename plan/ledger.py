"""Counts the bytes of tensors that are alive while code runs, without any of them existing.

The code is the pipeline's own, run on fake tensors (`FakeTensorMode`), which have shapes and types but no
memory. So nothing is assumed about what autograd saves, what a layer computes on the way, or when it is
freed: every tensor that an operation returns is entered when it appears and struck out when its storage goes.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Bytes = Counter[str]
"""Row of the table → bytes."""
Profile = dict[str, Bytes]
"""Section of what was run → the bytes at its peak."""

ACTIVATIONS, LOGITS, KV_CACHE = "activations", "logits", "KV cache"
GRADIENTS, TRUNK = "gradients", "frozen-trunk states"


class Ledger(TorchDispatchMode):
    """Bytes alive by row, and the highest sum of each section. `owned` tensors are counted elsewhere."""

    def __init__(self, owned: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: Bytes = Counter()
        self.peaks: Profile = {}
        self._section, self._row = "", ACTIVATIONS
        self._rows: dict[int, str] = {}
        self._owned = [tensor.untyped_storage() for tensor in owned]
        self._known = {_address(storage) for storage in self._owned}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._hooks = contextlib.ExitStack()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            self._enter(tensor.untyped_storage())
        return output

    def __exit__(self, *details: Any) -> None:
        self._hooks.close()
        super().__exit__(*details)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Peaks inside the block are kept under `name`."""
        before, self._section = self._section, name
        try:
            yield
        finally:
            self._section = before

    def book(self, row: str) -> None:
        """What appears from now on belongs to `row`."""
        self._row = row

    def rebook(self, tensor: Tensor, row: str) -> None:
        """`tensor`, which has appeared already, belongs to `row`."""
        key = _address(tensor.untyped_storage())
        if key in self._watched and self._rows[key] != row:
            size = tensor.untyped_storage().nbytes()
            self.alive[self._rows[key]] -= size
            self.alive[row] += size
            self._rows[key] = row

    def head_follows(self, hidden: Tensor) -> None:
        """What appears from now on belongs to the logits, until `hidden` gets its gradient."""
        self.book(LOGITS)
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: self.book(ACTIVATIONS))

    def watch_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Book every gradient under gradients as soon as it is one."""
        for parameter in parameters:
            handle = parameter.register_post_accumulate_grad_hook(lambda p: self.rebook(p.grad, GRADIENTS))
            self._hooks.callback(handle.remove)

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = _address(storage)
        size = storage.nbytes()
        if key in self._known or key in self._watched:
            return
        self._rows[key] = self._row
        self._watched[key] = weakref.ref(storage, lambda _: self._leave(key, size))
        self.alive[self._row] += size
        peak = self.peaks.get(self._section)
        if peak is None or self.alive.total() > peak.total():
            self.peaks[self._section] = self.alive.copy()

    def _leave(self, key: int, size: int) -> None:
        self.alive[self._rows.pop(key)] -= size
        del self._watched[key]


def _address(storage: torch.UntypedStorage) -> int:
    """What tells a storage apart: it has no data whose address could, and its Python object's id changes."""
    address: int = storage._cdata
    return address


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors among what an operation returns: one, or several in a list or tuple."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(each)


def extrapolated(shallow: Profile, deep: Profile, *, depths: tuple[int, int], depth: int) -> Profile:
    """The profile of a model of `depth` equal layers, linear in it, from those of two shallower ones."""
    share = (depth - depths[0]) / (depths[1] - depths[0])
    return {
        section: Counter(
            {
                row: round(shallow[section][row] + share * (rows[row] - shallow[section][row]))
                for row in {*rows, *shallow[section]}
            }
        )
        for section, rows in deep.items()
    }

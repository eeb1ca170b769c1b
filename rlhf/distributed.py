"""On what a process runs, and with whom: the only place that knows of ranks; `rlhf.zero` knows DeepSpeed.

A stage is one program on every rank. What is small (token ids, scores, log-probabilities, figures) every rank
has whole and computes with alike, so that the code of one process is that of many; each works only on its own
rows of what is large, and rank 0 alone writes files and speaks. The launcher (`rlhf.launch`) says through
the environment, as torchrun and accelerate do, which rank this is.
"""

import contextlib
import datetime
import importlib.util
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from rlhf import checkpoints, preemption
from rlhf.config import Precision, RunSettings
from rlhf.errors import UserError

if TYPE_CHECKING:
    from rlhf.backbone import Backbone

T = TypeVar("T")
_Word = tuple[Literal["result", "refused", "preempted", "ended"], Any]
"""How rank 0's work in `Team.lead` ended, and what came of it."""

_PATIENCE = datetime.timedelta(hours=6)
"""How long a rank waits for another that works alone. It is the launcher that notices a rank's death."""
_LOST = re.compile(
    "closed by peer|Connection reset|Broken pipe|Connection refused|remote process exited|aborted"
    "|tcp/pair|unbound_buffer|failed to recv|recvBytes failed|sendBytes failed"
)
"""What gloo, the store and NCCL say when another rank has gone. No type of error tells that from a mistake
in the set-up: an interface that does not exist, two ranks on one GPU."""
_FIRST_WORD_SECONDS = 2.0
"""How long another rank leaves it to rank 0 to say what may have gone wrong on all of them."""
_PAUSE_SECONDS = 0.2
"""The longest time between two looks whether rank 0 has spoken."""


class EndedError(RuntimeError):
    """Rank 0 ended while the others waited for its word."""


class Team:
    """The processes of a stage, seen from one of them. Alone, everything here is the identity."""

    def __init__(self) -> None:
        environment = os.environ
        self.is_launched = "LOCAL_RANK" in environment and "WORLD_SIZE" in environment
        self.rank = int(environment["RANK"]) if self.is_launched else 0
        self.size = int(environment["WORLD_SIZE"]) if self.is_launched else 1
        uses_deepspeed = environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
        self.zero = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")) if uses_deepspeed else 0
        """DeepSpeed's ZeRO stage; 0: no DeepSpeed."""
        self.device = torch.device("cpu")
        self.catch_up: Callable[[], None] = lambda: None
        """Called before ranks talk: where weights are gathered layer by layer, ends the others' passes."""
        self.gathering: Literal["auto", "whole", "layers"] = "auto"
        """How weights that are cut over ranks come together outside training: `run.gather`."""
        self._turns = 0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and speaks."""
        return self.rank == 0

    # ---- rows -------------------------------------------------------------------------------------

    def share(self, num_rows: int) -> list[int]:
        """This rank's rows of so many: every size-th. Never empty: a rank too many works on another's row."""
        return list(range(self.rank, num_rows, self.size)) or [self.rank % num_rows]

    def merge(self, own: Sequence[T], num_rows: int) -> list[T]:
        """One value for every row, in order, from those that each rank has for its `share`."""
        parts = self.gather(list(own))
        return [parts[row % self.size][row // self.size] for row in range(num_rows)]

    def merge_rows(self, own: Tensor, num_rows: int) -> Tensor:
        """`merge` of a tensor's rows; a second dimension is filled up with zeros to the longest."""
        if self.size == 1:
            return own
        parts = [part.to(own.device) for part in self.gather(own.detach().cpu())]
        if own.dim() > 1:
            width = max(part.shape[1] for part in parts)
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        return torch.stack([parts[row % self.size][row // self.size] for row in range(num_rows)])

    # ---- talk -------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        if self.size == 1:
            return [value]
        self.catch_up()
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self._words)
        return values

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over ranks, by name; the same bits on all of them."""
        if self.size == 1:
            return dict(values)
        sums: dict[str, float] = {}
        for part in self.gather(dict(values)):
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather(flag))

    def num_at_work(self, is_at_work: bool) -> int:
        """How many ranks are at work; the one word between ranks for which nobody catches up first."""
        number = torch.tensor([int(is_at_work)])
        torch.distributed.all_reduce(number, group=self._words)
        return int(number)

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, the only one that does it, on all ranks; so with what ends it."""
        if self.size == 1:
            return work()
        self.catch_up()
        self._turns += 1
        key = f"lead-{self._turns}"
        if not self.is_first:
            return self._follow(key)  # type: ignore[no-any-return]
        word: _Word = ("ended", None)
        try:
            result = work()
            word = ("result", result)
        except UserError as error:
            word = ("refused", (error.what, error.where, error.fix))
            raise
        except preemption.Preempted:
            word = ("preempted", None)
            raise
        finally:
            self._store.set(key, pickle.dumps(word))
        return result

    def _follow(self, key: str) -> Any:
        """What rank 0 says under `key`. A wait in the store itself would be deaf to signals."""
        pause = 0.001
        while not self._store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS)
        kind, value = pickle.loads(self._store.get(key))
        if kind == "refused":
            raise UserError(value[0], where=value[1], fix=value[2])
        if kind == "preempted":
            preemption.stop()
        if kind == "ended":
            raise EndedError("rank 0 has ended")
        return value

    def even(self, parts: list[T], spare: Callable[[], T]) -> list[T]:
        """`parts`, filled up with spare ones to the largest number of any rank, where ranks must run alike.

        Under ZeRO-3 every forward and backward pass gathers weights from all ranks.
        """
        if self.zero != 3 or self.size == 1:
            return parts
        missing = max(self.gather(len(parts))) - len(parts)
        return parts + [spare() for _ in range(missing)]

    def claim(self, what: str) -> bool:
        """Whether this rank is the first to claim `what`."""
        return self.size == 1 or self._store.add(f"claim-{what}", 1) == 1

    # ---- coming together --------------------------------------------------------------------------

    def meet(self) -> None:
        """Find the other ranks; from here on only rank 0 speaks on stdout."""
        if self.size > 1:
            assert self._store is not None
            if not self.is_first:
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for good

    def start(self, device: torch.device) -> None:
        """Take `device` and, if launched, set up what ranks and DeepSpeed talk through."""
        self.device = device
        # Else DeepSpeed, which libraries import wherever it is installed, looks for a GPU and says so.
        if device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if not self.is_launched or torch.distributed.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._join("nccl" if device.type == "cuda" else "gloo")
        if self.zero:
            from rlhf.zero_setup import start_deepspeed

            start_deepspeed(device)

    def _join(self, backend: str) -> None:
        try:
            torch.distributed.init_process_group(
                backend,
                store=PrefixStore("ranks", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=_PATIENCE,
            )
        except RuntimeError as error:
            if is_loss(error):
                raise
            raise UserError(
                f"the processes cannot talk to each other ({str(error).splitlines()[-1]})",
                where="launch",
                fix=f"Name a network interface that there is: {backend.upper()}_SOCKET_IFNAME, or unset it.",
            ) from None

    @cached_property
    def _store(self) -> Any:
        store, _, _ = next(iter(rendezvous("env://", timeout=_PATIENCE)))
        store.set_timeout(_PATIENCE)
        return store

    @cached_property
    def _words(self) -> Any:
        """The group that Python objects travel in: over the CPU also where tensors go from GPU to GPU."""
        if torch.distributed.get_backend() == "gloo":
            return torch.distributed.group.WORLD
        return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


_team = Team()


def team() -> Team:
    """The processes that this one works with."""
    return _team


def start_process(
    run: RunSettings, *, max_grad_norm: float | None = None, precision: Precision = "fp32"
) -> Team:
    """Set the thread count, choose the device that `run` asks for, and meet the other ranks.

    `max_grad_norm` and `precision` are the recipe's, and what the launcher was told must not contradict them.

    Raises:
        UserError: the device does not exist here, or the launcher was told something else.
    """
    _team.gathering = run.gather
    if run.threads:
        torch.set_num_threads(run.threads)
    if _team.zero:
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                "DeepSpeed is asked for and not installed",
                where=f"ZERO={_team.zero}",
                fix="python -m pip install -c constraints.txt -e '.[cluster]', or leave ZERO and GPUS out.",
            )
        from rlhf.zero_setup import check_launch

        check_launch(_team.zero, max_grad_norm=max_grad_norm, precision=precision)
    elif _team.size > 1:
        raise UserError(
            f"{_team.size} processes without DeepSpeed",
            where="launch",
            fix="Give ZERO=1, 2 or 3 (make), or an accelerate config of type DEEPSPEED: configs/accelerate/.",
        )
    _team.start(_device(run.device))
    return _team


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and _team.is_launched:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot use the device: {reason}", where=f"run.device={name}", fix="Try auto or cpu."
        ) from None
    return device


@contextlib.contextmanager
def loading_weights(precision: Precision) -> Iterator[None]:
    """Inside the block transformers loads a model in parts, under ZeRO-3: no rank ever holds all of it."""
    if _team.zero != 3:
        yield
        return
    from rlhf.gathering import partitioned_load

    with partitioned_load(precision):
        yield


@contextlib.contextmanager
def whole_weights(backbone: "Backbone") -> Iterator[None]:
    """Inside the block the weights are here, also under ZeRO-3: for passes without gradients, and to save.

    Gathered once for the block, or layer by layer where they do not fit: `run.gather`.
    """
    if _team.zero != 3:
        yield
        return
    from rlhf.gathering import gathering

    with gathering(backbone, backbone.trunk.layers, backbone.fused):
        yield


def newest_checkpoint(folder: Path) -> checkpoints.Checkpoint | None:
    """The newest whole checkpoint of a stage, the same on all ranks: rank 0 looks which one that is."""
    found: list[checkpoints.Checkpoint | None] = []

    def look() -> int | None:
        found.append(checkpoints.latest(folder))
        return None if found[0] is None else found[0].step

    step = _team.lead(look)
    if found or step is None:
        return found[0] if found else None
    checkpoint = checkpoints.load(folder, step)
    if checkpoint is None:
        raise UserError(
            f"rank {_team.rank} cannot read the checkpoint of step {step} that rank 0 goes on from",
            where=str(folder),
            fix="All ranks must see the same files; start again when they do.",
        )
    return checkpoint


def team_rng_tensors() -> dict[str, Tensor]:
    """The states of every rank's random number generators, for a checkpoint. All ranks call it."""
    states = _team.gather(checkpoints.rng_tensors())
    return {f"rank{rank}.{name}": value for rank, own in enumerate(states) for name, value in own.items()}


def restore_team_rng(tensors: Mapping[str, Tensor]) -> None:
    """Put back what `team_rng_tensors` gave; a rank that the other team did not have takes rank 0's."""
    prefix = f"rank{_team.rank}."
    if not any(name.startswith(prefix) for name in tensors):
        prefix = "rank0."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    checkpoints.restore_rng(own)


def balanced(costs: Sequence[int], num_parts: int) -> list[list[int]]:
    """Places of `costs` in so many parts of like total: the costliest first, to the cheapest part yet."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        cheapest = totals.index(min(totals))
        parts[cheapest].append(place)
        totals[cheapest] += costs[place]
    return [sorted(part) for part in parts]


def say_error(text: str) -> None:
    """Print an error on stderr, once for all ranks, with the rank if it is not rank 0's.

    What all ranks run into alike rank 0 says, and what follows from another rank's end nobody says again.
    """
    if _team.size == 1:
        print(text, file=sys.stderr)
        return
    if not _team.is_first:
        time.sleep(_FIRST_WORD_SECONDS)
    try:
        is_mine = _team.claim("error")
    except RuntimeError:  # the store died with rank 0, which spoke or was killed: the launcher names it
        is_mine = False
    if is_mine:
        print(text if _team.is_first else f"rank {_team.rank}: {text}", file=sys.stderr, flush=True)


def is_loss(error: Exception) -> bool:
    """Whether an error says that another rank is gone."""
    return isinstance(error, EndedError) or (
        isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
    )


@contextlib.contextmanager
def whole_model(model: Any) -> Iterator[None]:
    """`whole_weights` of a causal language model of transformers, with or without PEFT around it."""
    if _team.zero != 3:
        yield
        return
    from rlhf.gathering import gathering
    from rlhf.trunk import decoder_layers

    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    layers = decoder_layers(plain.get_decoder(), plain.config.get_text_config().num_hidden_layers)
    with gathering(model, layers):
        yield

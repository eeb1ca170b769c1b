"""Complete training state on disk, written next to the old one, checked, and restored bitwise.

    <stage>/checkpoints/step-000012/
        tensors.safetensors     every tensor under its name
        state.json              everything else, and which names share one tensor
        checksums.json          SHA-256 of the other two

A checkpoint appears by one rename. One that does not match its checksums, or that holds NaN or an infinity,
is skipped, with a warning, for the one before it; none that holds such a number is written. There are no
pickles: what is not a tensor is JSON. Kept are the newest few and the best one.
"""

import json
import math
import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf import preemption
from rlhf.errors import UserError
from rlhf.runs.files import OLD, PARTIAL, remove, replace, sha256_file, storing, sync_tree
from rlhf.runs.finite import first_not_finite

CHECKPOINTS = "checkpoints"

_TENSORS, _STATE, _CHECKSUMS = "tensors.safetensors", "state.json", "checksums.json"
_SCHEMA_VERSION = 1
_NAME = re.compile(r"^step-(\d+)$")
FUSED_ON = ("cpu", "cuda")
"""Devices on which torch's AdamW updates all parameters in one call."""
_OPTIMIZER, _GROUPS, _RNG = "optimizer", "optimizer_groups", "rng"


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given."""

    step: int
    tensors: dict[str, Tensor]
    """On the CPU."""
    state: dict[str, Any]

    @staticmethod
    def of(step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> "Checkpoint":
        """A copy in memory, which stays as it is while training continues."""
        return Checkpoint(
            step, {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}, {**state}
        )


@dataclass
class Best:
    """The step with the best held-out metric so far. It is part of every checkpoint's state, as `best`."""

    step: int | None = None
    figure: float | None = None
    """A metric of which more is better. The name is a key in checkpoints, too."""

    def offer(self, step: int, figure: float) -> bool:
        """Whether `figure`, of which more is better, is the best so far; the first of equals is."""
        better = math.isfinite(figure) and (self.figure is None or figure > self.figure)
        if better:
            self.step, self.figure = step, figure
        return better


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    best: int | None = None,
) -> Path:
    """Write the checkpoint of `step` into the stage folder `folder`.

    All others are deleted but the newest `keep` and that of step `best`. Those of later steps go too: they
    are damaged, or of training that is being done again. Tensors may share memory (those that are the same
    are stored once) and may be of any dtype, shape and device. `state` comes back as JSON gives it: tuples as
    lists, keys as strings. A preemption waits until the checkpoint is written.

    Raises:
        UserError: no space, no permission to write, or a number that is not finite; the earlier checkpoints
            are intact.
    """
    assert keep >= 1
    if (name := first_not_finite(tensors, state)) is not None:
        raise UserError(
            f"`{name}` of step {step} is not finite, so no checkpoint of that step is written",
            where=str(folder),
            fix="The same command resumes from the checkpoint before it.",
        )
    root = folder / CHECKPOINTS
    final = root / f"step-{step:06d}"
    staging = root / f"{final.name}.new{PARTIAL}"
    with preemption.deferred(), storing(final):
        root.mkdir(parents=True, exist_ok=True)
        try:
            _write(staging, step, tensors, state)
            replace(staging, final)
        finally:
            _clear_leftovers(root)
        found = _steps(root)
        kept = {*sorted(s for s in found if s <= step)[-keep:], best}
        for other in set(found) - kept:
            _discard(found[other])
    return final


def load(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of `step` in the stage folder `folder`, or None, with a warning, if it is not whole."""
    path = folder / CHECKPOINTS / f"step-{step:06d}"
    try:
        return _read(path, step)
    except _DamagedError as error:
        print(f"warning: {path}: {error}", file=sys.stderr)
        return None


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in the stage folder `folder` that is whole, or None if there is none."""
    root = folder / CHECKPOINTS
    if not root.is_dir():
        return None
    _clear_leftovers(root)
    for step, path in sorted(_steps(root).items(), reverse=True):
        try:
            return _read(path, step)
        except _DamagedError as error:
            print(f"warning: {path}: {error}; trying the checkpoint before it", file=sys.stderr)
    return None


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's whole state under the parameters' names: `optimizer.<name>.exp_avg`, ...

    `optimizer_groups` is the UTF-8 JSON of what is not a tensor: learning rates, betas and the like.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}.{names[id(parameter)]}.{key}"] = value
            else:
                values.setdefault(names[id(parameter)], {})[key] = value
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        plain: dict[str, Any] = {"params": [names[id(parameter)] for parameter in group["params"]]}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"{_GROUPS}.{index}.{key}"] = value
            elif key != "params":
                plain[key] = value
        groups.append(plain)
    tensors[_GROUPS] = _json_tensor({"groups": groups, "values": values})
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; parameters are found by name, whatever their order.

    Each state tensor is moved to its parameter's device in its own dtype, and `step` to where it was (the
    CPU, unless the optimizer is fused or capturable).
    """
    stored = _json_value(tensors[_GROUPS])
    names = {id(parameter): name for name, parameter in parameters.items()}
    current = [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]
    assert [set(group["params"]) for group in stored["groups"]] == current, "other parameters than stored"
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in stored["values"].items()}
    for full, tensor in tensors.items():
        kind, _, rest = full.partition(".")
        if kind == _OPTIMIZER:
            name, _, key = rest.rpartition(".")
            states.setdefault(name, {})[key] = tensor.clone()
    optimizer.state.clear()
    for index, group in enumerate(optimizer.param_groups):
        for key, value in stored["groups"][index].items():
            if key != "params":
                group[key] = tuple(value) if isinstance(value, list) else value
        for key, value in group.items():
            if isinstance(value, Tensor):
                group[key] = tensors[f"{_GROUPS}.{index}.{key}"].clone().to(value.device)
        step_moves = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            for key, value in states.get(names[id(parameter)], {}).items():
                stays = key == "step" and not step_moves
                moved = value.to("cpu" if stays else parameter.device) if isinstance(value, Tensor) else value
                optimizer.state[parameter][key] = moved


def rng_tensors() -> dict[str, Tensor]:
    """The state of every random number generator of this process: torch's, numpy's, Python's."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    others = {
        "python": random.getstate(),
        "numpy": [name, [int(key) for key in keys], position, has_gauss, gauss],
    }
    tensors = {f"{_RNG}.torch": torch.get_rng_state(), f"{_RNG}.others": _json_tensor(others)}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index, value in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"{_RNG}.cuda.{index}"] = value
    if torch.backends.mps.is_available():
        tensors[f"{_RNG}.mps"] = torch.mps.get_rng_state()
    return tensors


def restore_rng(tensors: Mapping[str, Tensor]) -> None:
    """Put back what `rng_tensors` gave; generators of devices that are not here are skipped."""
    torch.set_rng_state(tensors[f"{_RNG}.torch"].clone())
    others = _json_value(tensors[f"{_RNG}.others"])
    version, internal, gauss = others["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, numpy_gauss = others["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, numpy_gauss))
    for index in range(torch.cuda.device_count()):
        if f"{_RNG}.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"{_RNG}.cuda.{index}"].clone(), index)
    if torch.backends.mps.is_available() and f"{_RNG}.mps" in tensors:
        torch.mps.set_rng_state(tensors[f"{_RNG}.mps"].clone())


class _DamagedError(Exception):
    """A checkpoint that cannot be used; the text says why."""


def _write(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    remove(folder)
    folder.mkdir()
    stored, same_as = _storable(tensors)
    save_file(stored, folder / _TENSORS)
    record = {"schema_version": _SCHEMA_VERSION, "step": step, "state": dict(state), "same_as": same_as}
    (folder / _STATE).write_text(json.dumps(record), encoding="utf-8")
    sums = {name: sha256_file(folder / name) for name in (_TENSORS, _STATE)}
    (folder / _CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
    sync_tree(folder)


def _read(folder: Path, step: int) -> Checkpoint:
    try:
        sums = json.loads((folder / _CHECKSUMS).read_bytes())
        for name in (_TENSORS, _STATE):
            if sums[name] != sha256_file(folder / name):
                raise _DamagedError(f"{name} does not match its checksum")
        record = json.loads((folder / _STATE).read_bytes())
        if (record["schema_version"], record["step"]) != (_SCHEMA_VERSION, step):
            raise _DamagedError(f"{_STATE} is of another version or step")
        tensors = load_file(folder / _TENSORS)
    except OSError as error:
        raise _DamagedError(f"{error.filename or folder}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _DamagedError(f"it cannot be read ({error})") from None
    tensors |= {name: tensors[origin] for name, origin in record["same_as"].items()}
    if (wrong := first_not_finite(tensors, record["state"])) is not None:
        raise _DamagedError(f"it holds a number that is not finite (`{wrong}`)")
    return Checkpoint(step=step, tensors=tensors, state=record["state"])


def _storable(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as safetensors takes them (contiguous, none sharing memory), and name → the same one's name."""
    stored: dict[str, Tensor] = {}
    same_as: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        view = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and view in first:
            same_as[name] = first[view]
            continue
        first[view] = name
        contiguous = tensor.cpu().contiguous()
        owns_storage = contiguous.untyped_storage().nbytes() == contiguous.numel() * contiguous.element_size()
        stored[name] = contiguous if owns_storage else contiguous.clone()
    return stored, same_as


def _steps(root: Path) -> dict[int, Path]:
    matches = ((_NAME.match(path.name), path) for path in root.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _discard(path: Path) -> None:
    """Delete a checkpoint so that no half of it is ever taken for a whole one."""
    to_delete = path.with_name(path.name + PARTIAL)
    path.rename(to_delete)
    remove(to_delete)


def _clear_leftovers(root: Path) -> None:
    """Delete what a dead process was writing; put back what it was about to replace."""
    for path in root.glob(f"*{PARTIAL}"):
        final = path.with_name(path.name.removesuffix(OLD))
        if path.name.endswith(OLD) and not final.exists():
            path.rename(final)
        else:
            remove(path)


def _json_tensor(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _json_value(tensor: Tensor) -> Any:
    return json.loads(bytes(tensor.cpu().numpy()))

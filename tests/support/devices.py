"""A pretended accelerator: its tensors and those of the host refuse to mix, as on a GPU, and nothing is lost.

Every tensor on the device is a `DeviceTensor` around one on the CPU, which does the work. So the whole of a
program runs without an accelerator, and an operation that would fail on one fails here: a tensor that was
made on the host meets one of the device. What a GPU allows is allowed: copies between the two, a host's
tensor without dimensions as a number, and indices from the host.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
"""The one device without a kernel, of which torch's automatic differentiation asks nothing."""
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten.copy.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor}


class MixedDevicesError(RuntimeError):
    """Tensors of the device and of the host in one operation."""


class DeviceTensor(Tensor):
    """A tensor on the pretended device."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, on_host: Tensor) -> "DeviceTensor":
        # Of an inference tensor torch refuses to make views of other tensors.
        with torch.inference_mode(mode=False):
            made = Tensor._make_wrapper_subclass(
                cls,
                on_host.shape,
                strides=on_host.stride(),
                storage_offset=on_host.storage_offset(),
                dtype=on_host.dtype,
                device=DEVICE,
                requires_grad=False,
            )
        made.on_host = on_host.detach()
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.on_host.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.on_host})"


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation, done on the host; its results are where a real device would have them."""
    leaves = tree_leaves((args, kwargs))
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    _check(func, args, inputs)
    # By keyword or by place: inside of inference mode operations arrive whole.
    targets = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if targets:
        is_on_device = targets[0].type == DEVICE.type
    else:
        is_on_device = any(isinstance(tensor, DeviceTensor) for tensor in inputs)
    results = func(*tree_map(_host, args), **tree_map(_host, kwargs))
    given = {id(leaf.on_host): leaf for leaf in inputs if isinstance(leaf, DeviceTensor)}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # An operation in place returns the very tensor that it was given.
        same = given.get(id(value))
        return same if same is not None else (DeviceTensor(value) if is_on_device else value)

    return tree_map(placed, results)


def _check(func: Any, args: tuple[Any, ...], inputs: list[Tensor]) -> None:
    if func in _COPIES:
        return
    checked = inputs
    if func in _INDEXED and isinstance(args[0], DeviceTensor):
        # Indices may be the host's; the values that are put there may not.
        checked = [leaf for leaf in (args[0], *args[2:]) if isinstance(leaf, Tensor)]
    sized = [tensor for tensor in checked if tensor.dim() > 0]
    if func in _INDEXED:
        sized += [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, DeviceTensor)]
    on_device = [isinstance(tensor, DeviceTensor) for tensor in sized]
    if any(on_device) and not all(on_device):
        raise MixedDevicesError(f"{func}: tensors of the device and of the host")


def _host(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.on_host if isinstance(value, DeviceTensor) else value


class _Dispatch(TorchDispatchMode):
    """Makes tensors on the device where the device is asked for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """Tensors of the device from Python's numbers: by itself torch would leave one on this device empty."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], DeviceTensor):
            args = (args[0], tree_map(_index, args[1], is_leaf=_is_numbers), *args[2:])
        assert func is not Tensor.new_tensor, "not pretended yet"
        return func(*args, **kwargs)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | range)


def _index(value: Any) -> Any:
    return DeviceTensor(torch.tensor(list(value))) if _is_numbers(value) else value


@contextlib.contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Inside the block there is the device."""
    with _Dispatch(), _FromData():  # type: ignore[no-untyped-call]
        yield DEVICE


def move(module: nn.Module) -> None:
    """Put a module's parameters and buffers on the device; parameters that were shared stay so."""
    moved: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None and not isinstance(parameter, DeviceTensor):
                if id(parameter) not in moved:
                    on_device = DeviceTensor(parameter.detach())
                    moved[id(parameter)] = nn.Parameter(on_device, requires_grad=parameter.requires_grad)
                owner._parameters[name] = moved[id(parameter)]
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and not isinstance(buffer, DeviceTensor):
                owner._buffers[name] = DeviceTensor(buffer)

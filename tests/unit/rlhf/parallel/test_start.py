"""Which device a stage takes."""

from typing import Any

import pytest
import torch

from rlhf.errors import UserError
from rlhf.parallel.start import start_process
from rlhf.settings.groups import RunSettings


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with MPS, where float64 does not exist, and without CUDA."""
    empty = torch.empty

    def on_apple(*args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.device(kwargs.get("device", "cpu")).type != "mps":
            return empty(*args, **kwargs)
        if kwargs.get("dtype") == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return empty(*args, **kwargs | {"device": "cpu"})

    monkeypatch.setattr(torch, "empty", on_apple)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("apple")
def test_auto_never_takes_a_device_without_float64() -> None:
    assert start_process(RunSettings(device="auto")).device == torch.device("cpu")


@pytest.mark.usefixtures("apple")
def test_a_device_without_float64_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"run.device=mps: cannot use the device: .*float64") as caught:
        start_process(RunSettings(device="mps"))
    assert "Try auto or cpu" in str(caught.value)

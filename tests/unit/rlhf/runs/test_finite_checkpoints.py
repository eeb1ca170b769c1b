"""NaN and infinities: never written into a checkpoint, and passed over where an older version wrote them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.errors import UserError
from rlhf.runs import checkpoints

NUMBERS = [float("nan"), float("inf"), float("-inf")]
GOOD: tuple[dict[str, Tensor], dict[str, Any]] = ({"weights": torch.ones(3)}, {"kl_coefficient": 0.1})


def poisoned(number: float) -> list[tuple[dict[str, Tensor], dict[str, Any], str]]:
    """Tensors and state with the number in one place, and the place's name."""
    return [
        ({"weights": torch.tensor([1.0, number, 1.0])}, {}, "weights"),
        ({"weights": torch.tensor([1.0, number]).bfloat16()}, {}, "weights"),
        ({"weights": torch.ones(3)}, {"kl_coefficient": number}, "state.kl_coefficient"),
        ({"weights": torch.ones(3)}, {"window": {"loss": [0.5, number]}}, "state.window.loss.1"),
    ]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_is_not_finite_is_not_checkpointed(tmp_path: Path, number: float) -> None:
    checkpoints.save(tmp_path, 1, *GOOD)
    for tensors, state, name in poisoned(number):
        with pytest.raises(UserError, match=f"`{name}` of step 2 is not finite"):
            checkpoints.save(tmp_path, 2, tensors, state)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.parametrize("number", NUMBERS)
def test_an_old_checkpoint_with_such_a_number_is_passed_over(
    tmp_path: Path, number: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, (tensors, state, name) in enumerate(poisoned(number)):
        folder = tmp_path / str(place)
        checkpoints.save(folder, 1, *GOOD)
        with monkeypatch.context() as patch:  # as versions wrote it that did not look
            patch.setattr(checkpoints, "first_not_finite", lambda tensors, state: None)
            checkpoints.save(folder, 2, tensors, state)
        found = checkpoints.latest(folder)
        assert found is not None
        assert found.step == 1
        assert f"it holds a number that is not finite (`{name}`)" in capsys.readouterr().err

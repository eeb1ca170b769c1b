from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import UserError
from sft.packing import check_packing
from tests.unit.sft.demos import sft_settings, small_start


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequences_do_not_see_each_other(tmp_path: Path, attention: str) -> None:
    check_packing(small_start(tmp_path, sft_settings(), attention=attention).model, attention)


def test_a_model_that_passes_over_the_border_is_refused(tmp_path: Path) -> None:
    model = small_start(tmp_path, sft_settings()).model
    forward = model.forward

    def without_positions(*, position_ids: torch.Tensor, **inputs: Any) -> Any:
        del position_ids
        return forward(**inputs)

    model.forward = without_positions
    with pytest.raises(UserError, match="attention `sdpa`, packed demonstrations see each other"):
        check_packing(model, "sdpa")

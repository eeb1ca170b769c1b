from typing import Any

import pytest
import torch

from benchmarks.gpu import decode
from benchmarks.gpu.plan import Case, shape
from rlhf.model.backbone import Backbone
from tests.unit.benchmarks.gpu.toys import toy_case


def test_the_floor_is_bytes_over_bandwidth() -> None:
    tiny = shape("tiny", 4, 1, 2, 1, 8, 10)
    # q and o 4·4, k and v 4·2, three of 4·8, norms 3·4, head 10·4; a token's keys and values are 2·2 numbers.
    weights = 2 * 16 + 2 * 8 + 3 * 32 + 12 + 40
    options = {"context_tokens": 7.5, "bytes_per_number": 2, "adapter_bytes": 100, "bandwidth": 1000.0}
    found = decode.floor_seconds(tiny, batch=3, **options)  # type: ignore[arg-type]
    assert found == pytest.approx((2 * weights + 100 + 3 * 7.5 * 4 * 2) / 1000)


def test_decoding_stops_at_the_first_batch_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(backbone: Backbone, case: Case, batch: int, *, role: str) -> dict[str, Any]:
        if batch == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return {"batch": batch, "role": role}

    monkeypatch.setattr(decode, "measure", measure)
    case = toy_case("decode", "toy").model_copy(update={"batches": [1, 4, 9]})
    cells = decode.run(case)["cells"]
    assert [(cell["batch"], "error" in cell) for cell in cells] == [(1, False), (1, False), (4, True)]

import pytest
from pydantic import ValidationError

from rlhf.settings.groups import SourceSettings
from sft.config import SFTSettings

SOURCES = [SourceSettings(path="demonstrations.jsonl")]


@pytest.mark.parametrize(
    ("batch", "micro", "accumulation"), [(8, 8, 1), (8, 100, 1), (8, 3, 4), (8, 1, 8), (30, 16, 2), (7, 6, 7)]
)
def test_micro_batches_of_one_size_fill_a_batch(batch: int, micro: int, accumulation: int) -> None:
    settings = SFTSettings(demonstrations=SOURCES, batch_size=batch, micro_batch_size=micro)
    assert settings.accumulation == accumulation


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_needs_demonstrations(method: str) -> None:
    with pytest.raises(ValidationError, match="needs `demonstrations`"):
        SFTSettings.model_validate({"method": method})


def test_a_model_taken_as_it_is_needs_none() -> None:
    assert SFTSettings(method="none").demonstrations == []


def test_packing_needs_a_row_length() -> None:
    with pytest.raises(ValidationError, match=r"packing needs `length\.max_tokens`"):
        SFTSettings(demonstrations=SOURCES, packing=True)

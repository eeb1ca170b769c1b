import pytest
from pydantic import ValidationError

from rlhf.config import SourceSettings
from sft.config import SFTSettings

SOURCES = [SourceSettings(path="demonstrations.jsonl")]


def test_micro_batches_must_fill_a_batch() -> None:
    with pytest.raises(ValidationError, match=r"micro_batch_size \(3\) must divide batch_size \(8\)"):
        SFTSettings(demonstrations=SOURCES, batch_size=8, micro_batch_size=3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_needs_demonstrations(method: str) -> None:
    with pytest.raises(ValidationError, match="needs `demonstrations`"):
        SFTSettings.model_validate({"method": method})


def test_a_model_taken_as_it_is_needs_none() -> None:
    assert SFTSettings(method="none").demonstrations == []


def test_packing_needs_a_row_length() -> None:
    with pytest.raises(ValidationError, match=r"packing needs `length\.max_tokens`"):
        SFTSettings(demonstrations=SOURCES, packing=True)

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.settings.groups import ModelSettings, SamplingSettings, SourceSettings
from sft.train import prepare
from tests.support.small import write_small_model
from tests.unit.sft.demos import recipe, sft_settings


def test_samples_that_fill_the_context_are_refused_before_training(tmp_path: Path) -> None:
    write_small_model(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text(
        '{"prompt": "w1", "completion": " w2"}\n{"prompt": "w3", "completion": "w4"}'
    )
    settings = sft_settings(
        demonstrations=[SourceSettings(path=str(tmp_path / "data.jsonl"))],
        sampling=SamplingSettings(max_response_tokens=128),
    )
    given = replace(recipe(), model=ModelSettings(path=str(tmp_path / "base")))
    with pytest.raises(UserError, match="the model's context is 128 tokens") as caught:
        prepare(given, settings)
    assert str(caught.value).startswith("sft.sampling.max_response_tokens: ")
    assert len(prepare(given, settings.model_copy(update={"num_samples": 0})).examples.train) == 1

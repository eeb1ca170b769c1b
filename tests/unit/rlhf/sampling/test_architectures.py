"""Sampling from models of many architectures, whose caches hold windows, latent keys or recurrent states."""

import dataclasses
from typing import Any

import pytest
import torch

from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import Rollouts
from rlhf.settings.groups import SamplingSettings
from tests.support.architectures import ARCHITECTURES, tiny_model
from tests.support.small import word_tokenizer

PROMPTS = [list(range(5, 6 + (5 * i) % 9)) for i in range(10)]
KEYS = [(3, i, 1) for i in range(len(PROMPTS))]
STOP = ["w11", "w22", "w33", "w44", "w55"]
"""Words that often end a response, so that rows leave the batch at different times."""


def backbone_of(model_type: str, **changes: Any) -> Backbone:
    return Backbone(tiny_model(model_type, **changes), word_tokenizer(), "")


def drawn(backbone: Backbone, batch_size: int, max_response_tokens: int = 16) -> Rollouts:
    settings = SamplingSettings(max_response_tokens=max_response_tokens, batch_size=batch_size, stop=STOP)
    return sample(backbone, PROMPTS, role=REFERENCE, settings=settings, keys=KEYS, seed=7)


def check_training_logprobs(backbone: Backbone, rollouts: Rollouts) -> None:
    with torch.no_grad():
        batch = rollouts.batch()
        hidden_NH = backbone.hidden(batch.tokens, wanted_M=batch.before_response_N)
        logprobs_N = backbone.logprobs(hidden_NH, batch.response_tokens_N, temperature=1.0)
    torch.testing.assert_close(logprobs_N, batch.take(rollouts.sampled_logprobs_BT), atol=2e-4, rtol=0)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_samples_are_those_of_a_batch_of_one_when_rows_leave(model_type: str) -> None:
    backbone = backbone_of(model_type)
    together = drawn(backbone, batch_size=8)
    lengths = together.response_lengths_B
    assert int(lengths.min()) < int(lengths.max())
    alone = drawn(backbone, batch_size=1)
    assert together.response_lists() == alone.response_lists()
    check_training_logprobs(backbone, together)


def test_a_cache_that_bears_neither_padding_nor_fewer_rows_is_found_out() -> None:
    use = backbone_of("recurrent_gemma").cache_use
    assert dataclasses.asdict(use) == {"padded_prompts": False, "fewer_rows": False}
    use = backbone_of("lfm2").cache_use
    assert dataclasses.asdict(use) == {"padded_prompts": True, "fewer_rows": True}


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 16,
}


def test_a_longrope_model_sees_as_far_as_its_frequencies_are_the_same() -> None:
    """Beyond, the longest row of a batch would change the logits of all others (Phi-3, Phi-4-mini)."""
    backbone = backbone_of("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=16)
    assert backbone.max_length == 16
    longest_prompt = max(map(len, PROMPTS))
    rollouts = drawn(backbone, 8, backbone.max_length - longest_prompt)
    assert (
        rollouts.response_lists() == drawn(backbone, 1, backbone.max_length - longest_prompt).response_lists()
    )
    check_training_logprobs(backbone, rollouts)
    assert backbone_of("phi3").max_length == 128

from pathlib import Path

import pytest
import torch

from rlhf.model.backbone import Backbone
from rlhf.settings.groups import SamplingSettings
from sft import evaluate
from sft.evaluate import held_out_metrics, sample_answers
from tests.unit.sft.demos import random_examples, sft_settings, small_start
from tests.unit.sft.test_trainer import brute_force_loss

EXAMPLES = random_examples(15, seed=1)


def test_the_loss_is_the_mean_over_all_completion_tokens(tmp_path: Path) -> None:
    model = small_start(tmp_path, sft_settings()).model
    with torch.no_grad():
        expected = brute_force_loss(model, EXAMPLES).item()
    metrics = held_out_metrics(model, EXAMPLES)
    assert metrics["sft/heldout_loss_nats_per_token"] == pytest.approx(expected, abs=1e-5)
    assert 0 <= metrics["sft/heldout_token_accuracy"] <= 1


@pytest.mark.parametrize("limit", [1, 50, 100])
def test_it_does_not_depend_on_how_examples_are_batched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    model = small_start(tmp_path, sft_settings()).model
    whole = held_out_metrics(model, EXAMPLES)
    monkeypatch.setattr(evaluate, "_MAX_TOKENS", limit)
    parts = held_out_metrics(model, EXAMPLES[::-1])
    assert parts == pytest.approx(whole, abs=1e-5)


def test_measuring_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = small_start(tmp_path, sft_settings()).model.train()
    state = torch.get_rng_state()
    held_out_metrics(model, EXAMPLES)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert held_out_metrics(model, []) == {}


def test_samples_are_answers_to_held_out_prompts_that_leave_room(tmp_path: Path) -> None:
    begin = small_start(tmp_path, sft_settings())
    backbone = Backbone(begin.model, begin.tokenizer, "")
    longest = max(len(example.prompt_ids) for example in EXAMPLES)
    settings = SamplingSettings(max_response_tokens=backbone.max_length - longest + 1)
    samples = sample_answers(backbone, EXAMPLES, settings, num_samples=4, seed=0)
    fitting = [example for example in EXAMPLES if len(example.prompt_ids) < longest][:4]
    assert [row[:2] for row in samples.rows] == [
        [example.demonstration.prompt, example.demonstration.completion] for example in fitting
    ]
    assert 1 <= samples.metrics["sft/sample_tokens_mean"] <= settings.max_response_tokens
    assert sample_answers(backbone, EXAMPLES, settings, num_samples=4, seed=0) == samples
    assert sample_answers(backbone, EXAMPLES, settings, num_samples=4, seed=1).rows != samples.rows


def test_without_samples_there_are_no_metrics(tmp_path: Path) -> None:
    begin = small_start(tmp_path, sft_settings())
    backbone = Backbone(begin.model, begin.tokenizer, "")
    assert sample_answers(backbone, EXAMPLES, SamplingSettings(), num_samples=0, seed=0).metrics == {}

"""Whether a difference between sampler and training pass is rounding."""

import dataclasses

import pytest
import torch
from torch import Tensor

from ppo.rollout import Scored
from ppo.sampler_gap import SamplerGapError, check_sampler_gap
from rlhf.model.backbone import Backbone
from rlhf.sampling.rollouts import from_lists
from rlhf.settings.groups import Precision
from tests.support.architectures import tiny_model
from tests.support.small import small_backbone, word_tokenizer

NUM_ROWS = 40
LENGTHS = [1 + 7 * row % 23 for row in range(NUM_ROWS)]
LAST = 36
"""A row beyond the first few, with several tokens."""


def scored(backbone: Backbone, gap_BT: Tensor) -> Scored:
    """Responses whose training log-probabilities differ by `gap_BT` from the sampler's."""
    responses = [[5] * length for length in LENGTHS]
    rollouts = from_lists([[4, 5]] * NUM_ROWS, responses, backbone)
    generator = torch.Generator().manual_seed(0)
    sampled_BT = -torch.rand(rollouts.response_mask_BT.shape, generator=generator) - 0.1
    rollouts = dataclasses.replace(rollouts, sampled_logprobs_BT=sampled_BT)
    trained_BT = torch.where(rollouts.response_mask_BT, sampled_BT + gap_BT, 0)
    return Scored(
        rollouts=rollouts, prompts=[""] * NUM_ROWS, responses=[""] * NUM_ROWS, scores_B=torch.ones(NUM_ROWS),
        logprobs_BT=trained_BT, reference_logprobs_BT=trained_BT, values_BT=None,
        sampler_gap_N=gap_BT[rollouts.response_mask_BT],
    )  # fmt: skip


def noise(mean: float) -> Tensor:
    """Gaps as rounding leaves them: of either sign, some far larger than most, with this mean size."""
    gap_BT = torch.randn(NUM_ROWS, max(LENGTHS), generator=torch.Generator().manual_seed(1))
    gap_BT = gap_BT * gap_BT.abs()
    return mean * gap_BT / gap_BT.abs().mean()


def planted(row: int, nats: float, *, tokens: int = 1) -> Tensor:
    gap_BT = torch.zeros(NUM_ROWS, max(LENGTHS))
    gap_BT[row, :tokens] = nats
    return gap_BT


def in_precision(precision: Precision) -> Backbone:
    backbone = small_backbone()
    assert backbone._model_settings is not None
    backbone._model_settings = backbone._model_settings.model_copy(update={"precision": precision})
    return backbone


@pytest.mark.parametrize("row", [0, LAST])
def test_in_fp32_one_token_of_any_row_ends_the_run(row: int) -> None:
    backbone = small_backbone()
    assert LENGTHS[LAST] >= 8
    check_sampler_gap(scored(backbone, planted(row, 0.9e-3)), backbone)
    with pytest.raises(SamplerGapError, match=r"up to 0.002 nats .* fp32 explains a difference of 0.001"):
        check_sampler_gap(scored(backbone, planted(row, 2e-3)), backbone)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_in_lower_precision_the_mean_of_all_tokens_counts(precision: Precision) -> None:
    backbone = in_precision(precision)
    check_sampler_gap(scored(backbone, noise(0.04)), backbone)
    with pytest.raises(SamplerGapError, match=rf"0.06 nats in the mean .* {precision} explains one of 0.05"):
        check_sampler_gap(scored(backbone, noise(0.06)), backbone)


def test_in_lower_precision_one_response_far_off_is_not_lost_in_the_mean_of_all() -> None:
    backbone = in_precision("bf16")
    gap_BT = noise(0.02) + planted(LAST, 1.0, tokens=max(LENGTHS))
    assert float(scored(backbone, gap_BT).sampler_gap_N.abs().mean()) < 0.05 * 1.5
    with pytest.raises(SamplerGapError, match="in the mean"):
        check_sampler_gap(scored(backbone, gap_BT), backbone)
    check_sampler_gap(scored(backbone, noise(0.02) + planted(LAST, 2.0)), backbone)


def test_a_row_that_is_not_finite_hides_no_other_and_is_no_gap_itself() -> None:
    backbone = small_backbone()
    check_sampler_gap(scored(backbone, planted(3, float("nan"))), backbone)
    check_sampler_gap(scored(backbone, planted(3, float("inf"))), backbone)
    gap_BT = planted(3, float("nan")) + planted(LAST, 5e-3)
    with pytest.raises(SamplerGapError):
        check_sampler_gap(scored(backbone, gap_BT), backbone)


def test_experts_may_change_with_rounding_but_not_the_mean() -> None:
    backbone = Backbone(tiny_model("mixtral"), word_tokenizer(), "")
    assert backbone.routes_tokens
    check_sampler_gap(scored(backbone, planted(LAST, 0.3)), backbone)
    with pytest.raises(SamplerGapError):
        check_sampler_gap(scored(backbone, noise(0.5)), backbone)


def test_logits_far_from_zero_are_rounded_in_coarser_steps() -> None:
    """GPT-2's are near −100, where bf16 knows steps of 0.5."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    backbone = Backbone(model, word_tokenizer(), "")
    before = backbone.logit_rounding_nats
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(64)
    far = Backbone(model, word_tokenizer(), "")
    assert far.logit_rounding_nats == pytest.approx(64 * before, rel=0.1)

"""The reward that PPO puts on a base of another precision, and the policy merged into full precision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo.merge import Drawn, merged_gap
from ppo.models import POLICY, VALUE, AdapterReward, build_roles
from ppo.prompts import Requests
from ppo.rollout import RolloutScorer, Sampler
from reward.model import NORMALIZATION, ROLE, RewardCard, measure_normalization, score_sequences
from rlhf.model.adapters import init_head
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.batching import TokenBatch
from rlhf.sampling.engine import sample
from rlhf.sampling.judged import judged_responses, stopped_rows
from rlhf.settings.groups import Precision
from tests.invariant.test_ppo_properties import PRECISIONS, PROMPTS, ppo_settings, schedule
from tests.support.small import perturb, small_backbone
from tests.unit.reward.test_model import published

SETTINGS = ppo_settings(reward="adapter")


def roles(folder: Path, precision: Precision) -> tuple[Backbone, AdapterReward]:
    backbone = small_backbone(precision=precision)
    reward = build_roles(
        backbone, SETTINGS, reward_folder=folder, base_sha256="a" * 64, prompts=PROMPTS.ids, seed=1
    )
    assert isinstance(reward, AdapterReward)
    return backbone, reward


def test_the_same_precision_keeps_the_published_normalization(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = published(tmp_path)
    _, reward = roles(folder, "fp32")
    assert reward.model.card == RewardCard.of(folder)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_another_precision_measures_mean_and_std_again_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: Precision
) -> None:
    _, folder = published(tmp_path, num_reference_samples=40)
    backbone, reward = roles(folder, precision)
    assert f"normalized on an fp32 base, and this one is {precision}" in capsys.readouterr().out
    assert reward.model.card.precision == precision
    samples = measure_normalization(
        backbone, PROMPTS.ids, SETTINGS.sampling, num_samples=40, max_tokens=64, seed=1
    )
    normalized = (samples.scores_S - reward.model.mean) / reward.model.std
    assert float(normalized.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normalized.std(correction=0)) == pytest.approx(1, abs=1e-5)
    _, again = roles(folder, precision)
    assert again.model.card == reward.model.card


def test_the_value_starts_as_the_reward_in_its_new_normalization(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    _, folder = published(tmp_path, num_reference_samples=40)
    backbone, reward = roles(folder, "nf4")
    ids = torch.tensor([PROMPTS.ids[4]])
    with torch.no_grad():
        with backbone.role(VALUE):
            value = backbone.scalar(VALUE, backbone.hidden(ids)[:, -1])
        normalized = reward.model.normalized(reward.model.raw(TokenBatch(ids)))
        torch.testing.assert_close(value, normalized, atol=1e-5, rtol=1e-5)


def test_samples_that_all_score_alike_have_std_1() -> None:
    backbone = small_backbone(ROLE)
    init_head(backbone.add_head(ROLE, bias=False), seed=0)
    torch.nn.init.zeros_(backbone.heads[ROLE].weight)  # type: ignore[arg-type]
    measured = measure_normalization(
        backbone, PROMPTS.ids, SETTINGS.sampling, num_samples=4, max_tokens=64, seed=1
    )
    assert (measured.mean, measured.std) == (0.0, 1.0)


class NoReward:
    def score(self, rollouts: object, prompts: object, responses: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(responses))


@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [("fp32", 0, 1e-5), ("bf16", 1e-4, 0.1), ("int8", 1e-4, 0.1), ("nf4", 0.02, 2)],
)
def test_the_merged_policy_differs_by_the_rounding_of_the_base_it_was_trained_on(
    precision: Precision, low: float, high: float
) -> None:
    if precision in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes")
    backbone = small_backbone(POLICY, precision=precision)
    perturb(backbone, POLICY, seed=3)
    requests = Requests(PROMPTS, [(0, i, 0) for i in range(len(PROMPTS))])
    sampled = Sampler(backbone, SETTINGS, seed=1).sample(requests, role=POLICY)
    scored = RolloutScorer(backbone, NoReward(), SETTINGS).score(sampled, role=POLICY)
    assert scored.values_BT is None  # there is no value here, and nothing is trained
    drawn = Drawn(scored.rollouts, scored.logprobs_BT)
    gap = merged_gap(drawn, backbone.merged(POLICY), SETTINGS)
    print(gap)
    assert low <= gap["merged_gap_nats_mean"] <= high
    assert gap["merged_gap_nats_mean"] <= gap["merged_gap_nats_max"]


@pytest.mark.parametrize("top_layers", [None, 1])
def test_a_stopped_response_scores_as_its_text_before_the_stop_with_an_eos(
    tmp_path: Path, top_layers: int | None
) -> None:
    """Its sampled tokens score otherwise: no ranked completion ends with a stop string."""
    _, folder = published(tmp_path)
    settings = SETTINGS.model_copy(
        update={
            "sampling": SETTINGS.sampling.model_copy(update={"stop": ["w9", "w17"]}),
            "lora": SETTINGS.lora.model_copy(update={"top_layers": top_layers}),
        }
    )
    backbone = small_backbone()
    reward = build_roles(
        backbone, settings, reward_folder=folder, base_sha256="a" * 64, prompts=PROMPTS.ids, seed=1
    )
    assert isinstance(reward, AdapterReward)
    requests = schedule(settings).of_iteration(0)
    sampled = Sampler(backbone, settings, seed=1).sample(requests, role=POLICY)
    rollouts = sampled.rollouts.with_trunk(backbone, 64)
    stopped = stopped_rows(backbone, rollouts)
    assert 2 <= len(stopped) < len(rollouts)
    scores_B = reward.score(rollouts, sampled.prompts, sampled.responses)
    prompts, responses = rollouts.prompt_lists(), rollouts.response_lists()
    for row, drawn in enumerate(responses):
        judged = drawn
        if row in stopped:
            judged = [*drawn[:-1], backbone.eos_ids[0]]  # each stop string is one token
        with torch.no_grad():
            alone = reward.model.normalized(
                reward.model.raw(TokenBatch(torch.tensor([prompts[row] + judged])))
            )
        torch.testing.assert_close(scores_B[row], alone[0], atol=1e-4, rtol=1e-4)


def test_a_published_normalization_judges_stopped_samples_alike(tmp_path: Path) -> None:
    _, folder = published(tmp_path)
    backbone, _ = roles(folder, "fp32")
    sampling = SETTINGS.sampling.model_copy(update={"stop": ["w9", "w17"], "max_response_tokens": 12})
    measured = measure_normalization(backbone, PROMPTS.ids, sampling, num_samples=30, max_tokens=64, seed=1)
    order = np.random.default_rng([1, NORMALIZATION]).permutation(len(PROMPTS))
    keys = [(NORMALIZATION, int(order[i % len(order)]), i // len(order)) for i in range(30)]
    prompts = [PROMPTS.ids[key[1]] for key in keys]
    drawn = sample(backbone, prompts, role=REFERENCE, settings=sampling, keys=keys, seed=1)
    assert stopped_rows(backbone, drawn)
    judged = judged_responses(backbone, drawn, sampling)
    sequences = [prompt + ids for prompt, ids in zip(prompts, judged, strict=True)]
    expected = score_sequences(backbone, sequences, max_tokens=64).double()
    torch.testing.assert_close(measured.scores_S, expected, atol=1e-5, rtol=1e-5)

"""What PPO must keep, whatever the batch, the padding or the way it is cut."""

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppo.config import KLSettings, PPOSettings
from ppo.experience import Experience, compute_advantages, final_scores
from ppo.models import POLICY, VALUE, RewardSource, build_roles
from ppo.prompts import PromptSchedule, PromptSet, Requests
from ppo.rollout import RolloutScorer, Sampler, Scored, old_logprobs, score_tokens, score_values
from ppo.update import Updater
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.sampling.rollouts import Rollouts
from rlhf.settings.groups import LoraSettings, Precision, SamplingSettings, SourceSettings
from tests.support.small import perturb, small_backbone

PROMPTS = PromptSet(
    [[4 + i, 9, *range(10, 10 + i % 5)] for i in range(20)], [f"prompt {i}" for i in range(20)]
)

QUANTIZED = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
PRECISIONS = ["fp32", "bf16", *(pytest.param(name, marks=QUANTIZED) for name in ("int8", "nf4"))]


def rewards(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    del prompts
    return [math.sin(len(response)) for response in responses]


def ppo_settings(**changes: object) -> PPOSettings:
    values: dict[str, object] = {
        "prompts": [SourceSettings(path="unused.jsonl")],
        "reward": f"{Path(__file__).as_posix()}:rewards",
        "sampling": SamplingSettings(max_response_tokens=16, batch_size=7),
        "kl": KLSettings(coefficient=0.1),
        "lora": LoraSettings(rank=4, alpha=8.0),
        "num_iterations": 4,
        "rollouts_per_iteration": 16,
        "num_epochs": 2,
        "num_minibatches": 3,
        "micro_batch_tokens": 64,
        "policy_learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
    }
    return PPOSettings(**values | changes)  # type: ignore[arg-type]


class TokenReward:
    """A reward of token ids alone, so that it cannot depend on which tokens the tokenizer calls special."""

    def score(self, rollouts: Rollouts, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([math.sin(sum(ids)) for ids in rollouts.response_lists()])


class Game:
    """A backbone with its roles, an updater, and one iteration at a time."""

    def __init__(
        self,
        settings: PPOSettings,
        *,
        pad_token: str = "<pad>",
        noisy: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        self.settings = settings
        self.backbone: Backbone = small_backbone(pad_token=pad_token, precision=precision)
        build_roles(self.backbone, settings, reward_folder=None, base_sha256="", seed=1)
        if noisy:
            perturb(self.backbone, POLICY, seed=5)
            if settings.value == "separate":
                perturb(self.backbone, VALUE, seed=6)
            head = self.backbone.heads[VALUE].weight
            assert isinstance(head, Tensor)
            torch.nn.init.normal_(head, std=0.3, generator=torch.Generator().manual_seed(7))
        self.reward: RewardSource = TokenReward()
        self.updater = Updater(self.backbone, settings, seed=1)

    def rollouts(self, iteration: int = 0) -> Scored:
        """An iteration's responses of the policy, scored."""
        return self.answer(schedule(self.settings).of_iteration(iteration))

    def answer(self, requests: Requests) -> Scored:
        sampled = Sampler(self.backbone, self.settings, seed=1).sample(requests, role=POLICY)
        scorer = RolloutScorer(self.backbone, self.reward, self.settings)
        return scorer.score(sampled, role=POLICY, for_training=True)

    def experience(self, scored: Scored) -> Experience:
        return compute_advantages(scored, self.settings, kl_coefficient=self.settings.kl.coefficient)

    def gradients(self, batch: Experience, rows: Sequence[int]) -> dict[str, Tensor]:
        self.updater.optimization.optimizer.zero_grad(set_to_none=True)
        self.updater.accumulate(batch, rows)
        return {k: p.grad.clone() for k, p in self.updater.named.items() if p.grad is not None}

    def play(self, iterations: int) -> list[dict[str, float]]:
        return [
            self.updater.update(self.experience(self.rollouts(i)), iteration=i) for i in range(iterations)
        ]

    def weights(self) -> dict[str, Tensor]:
        return {k: p.detach().clone() for k, p in self.updater.named.items()}


def schedule(settings: PPOSettings, *, prompts: PromptSet = PROMPTS, seed: int = 1) -> PromptSchedule:
    return PromptSchedule(prompts, settings.rollouts_per_iteration, settings.samples_per_prompt, seed)


def padded(rollouts: Rollouts, left: int, right: int) -> Rollouts:
    """The same rollouts with more columns of padding, filled with a token that occurs in real text."""

    def widen(values: Tensor, fill: float) -> Tensor:
        sides = (
            (left, 0) if values is rollouts.prompt_ids_BP or values is rollouts.prompt_mask_BP else (0, right)
        )
        return torch.nn.functional.pad(values, sides, value=fill)

    return replace(
        rollouts,
        prompt_ids_BP=widen(rollouts.prompt_ids_BP, 17),
        prompt_mask_BP=widen(rollouts.prompt_mask_BP, False),
        response_ids_BT=widen(rollouts.response_ids_BT, 17),
        response_mask_BT=widen(rollouts.response_mask_BT, False),
        sampled_logprobs_BT=widen(rollouts.sampled_logprobs_BT, float("nan")),
    )


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    assert a
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=tolerance, rtol=1e-4)


def test_before_training_the_policy_is_the_reference() -> None:
    game = Game(ppo_settings())
    scored = game.rollouts()
    torch.testing.assert_close(scored.logprobs_BT, scored.reference_logprobs_BT, atol=1e-5, rtol=0)
    policy_BT = score_tokens(game.backbone, scored.rollouts, game.settings, role=POLICY)
    torch.testing.assert_close(policy_BT, scored.reference_logprobs_BT, atol=1e-6, rtol=0)


@pytest.mark.parametrize("off_by", [0.0, 0.01])
def test_a_sampler_that_disagrees_is_overruled(off_by: float) -> None:
    game = Game(ppo_settings(), noisy=True)
    rollouts = game.rollouts().rollouts
    wrong = replace(rollouts, sampled_logprobs_BT=rollouts.sampled_logprobs_BT - off_by)
    logprobs_BT, gap_N = old_logprobs(game.backbone, wrong, game.settings, role=POLICY)
    right_BT = score_tokens(game.backbone, rollouts, game.settings, role=POLICY)
    torch.testing.assert_close(logprobs_BT, right_BT, atol=1e-5, rtol=0)
    assert float(gap_N.mean()) == pytest.approx(off_by, abs=1e-4)
    assert (logprobs_BT[~rollouts.response_mask_BT] == 0).all()


@pytest.mark.parametrize("value", ["separate", "joint"])
def test_the_first_minibatch_of_every_iteration_starts_at_ratio_one(value: str) -> None:
    game = Game(ppo_settings(value=value, policy_learning_rate=1e-2))
    later = []
    for iteration in range(3):
        batch = game.experience(game.rollouts(iteration))
        first = game.updater.step(batch, range(5), iteration=iteration)
        assert first["ratio"] == pytest.approx(1, abs=1e-5)
        assert first["approx_kl"] == pytest.approx(0, abs=1e-9)
        assert first["policy_clip_fraction"] == 0
        later.append(game.updater.step(batch, range(5), iteration=iteration)["approx_kl"])
    assert all(kl > 1e-6 for kl in later)


@pytest.mark.parametrize("value", ["separate", "joint"])
def test_micro_batches_of_any_size_give_the_same_gradients(value: str) -> None:
    gradients = []
    for budget in (1, 40, 10_000):
        game = Game(ppo_settings(value=value, micro_batch_tokens=budget), noisy=True)
        batch = game.experience(game.rollouts())
        gradients.append(game.gradients(batch, [3, 0, 7, 12, 9]))
    close(gradients[0], gradients[2])
    close(gradients[1], gradients[2])


def test_padding_changes_no_logprob_value_score_advantage_or_gradient() -> None:
    game = Game(ppo_settings(), noisy=True)
    scored = game.rollouts()
    plain = game.experience(scored)
    wide_rollouts = padded(scored.rollouts, left=3, right=4)
    width = scored.rollouts.response_ids_BT.shape[1]
    for role in (POLICY, REFERENCE):
        wide_logprobs = score_tokens(game.backbone, wide_rollouts, game.settings, role=role)
        narrow = scored.logprobs_BT if role == POLICY else scored.reference_logprobs_BT
        torch.testing.assert_close(wide_logprobs[:, :width], narrow, atol=1e-5, rtol=1e-4)

    def widen(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, 4), value=float("nan"))

    values_BT = score_values(game.backbone, wide_rollouts, game.settings)
    torch.testing.assert_close(values_BT[:, :width], scored.values_BT, atol=1e-5, rtol=1e-4)
    wide_scored = replace(
        scored,
        rollouts=wide_rollouts,
        logprobs_BT=widen(scored.logprobs_BT),
        reference_logprobs_BT=widen(scored.reference_logprobs_BT),
        values_BT=values_BT,
    )
    wide = game.experience(wide_scored)
    torch.testing.assert_close(wide.advantages_BT[:, :width], plain.advantages_BT, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(wide.returns_BT[:, :width], plain.returns_BT, atol=1e-5, rtol=1e-4)
    rows = range(16)
    close(game.gradients(wide, rows), game.gradients(plain, rows))


def test_gradient_checkpointing_changes_no_sample_and_no_gradient_of_either_role() -> None:
    gradients = []
    for switched_on in (False, True):
        game = Game(ppo_settings(gradient_checkpointing=switched_on), noisy=True)
        gradients.append(game.gradients(game.experience(game.rollouts()), range(16)))
    close(gradients[0], gradients[1])


@pytest.mark.parametrize("pad_token", ["<eos>", "<unk>", "w5"])
def test_the_choice_of_pad_token_changes_no_weight(pad_token: str) -> None:
    own, other = Game(ppo_settings()), Game(ppo_settings(), pad_token=pad_token)
    metrics = own.play(3), other.play(3)
    for a, b in zip(*metrics, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    close(own.weights(), other.weights())


def test_the_number_of_optimizer_steps_is_epochs_times_minibatches_exactly() -> None:
    for rollouts, minibatches in ((16, 3), (16, 16), (7, 4)):
        game = Game(ppo_settings(rollouts_per_iteration=rollouts, num_minibatches=minibatches))
        metrics = game.play(2)
        assert [f["num_steps"] for f in metrics] == [2 * minibatches] * 2
        steps = {int(s["step"]) for s in game.updater.optimization.optimizer.state.values()}
        assert steps == {4 * minibatches}


def test_whitened_advantages_have_mean_zero_and_variance_one_over_real_tokens() -> None:
    batch = Game(ppo_settings(), noisy=True)
    made = batch.experience(batch.rollouts())
    kept = made.advantages_BT[made.rollouts.response_mask_BT].double()
    assert abs(float(kept.mean())) < 1e-6
    assert abs(float(kept.var(correction=0)) - 1) < 1e-4
    assert (made.advantages_BT[~made.rollouts.response_mask_BT] == 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_base_and_reference_are_bit_identical_after_training(precision: Precision) -> None:
    value = "joint" if precision == "bf16" else "separate"
    settings = ppo_settings(value=value, policy_learning_rate=1e-2, value_learning_rate=1e-2)
    game = Game(settings, precision=precision)
    rollouts = game.rollouts().rollouts
    # Of a quantized layer this holds codes, scales and code books.
    before = {k: v.clone() for k, v in game.backbone.model.state_dict().items() if ".lora_" not in k}
    reference = score_tokens(game.backbone, rollouts, game.settings, role=REFERENCE)
    start = game.weights()
    game.play(3)
    after = {k: v for k, v in game.backbone.model.state_dict().items() if ".lora_" not in k}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    again = score_tokens(game.backbone, rollouts, game.settings, role=REFERENCE)
    assert torch.equal(reference, again)
    assert any(not torch.equal(start[k], w) for k, w in game.weights().items() if k.startswith("policy."))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_base_in_memory_is_what_was_loaded_and_stays_in_one_copy(precision: Precision) -> None:
    def storages(backbone: Backbone) -> dict[int, int]:
        own = {id(p) for name in (POLICY, VALUE) for p in backbone.role_parameters(name).values()}
        tensors = [p.data for p in backbone.parameters() if id(p) not in own]
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}

    alone = sum(storages(small_backbone(precision=precision)).values())
    game = Game(ppo_settings(), precision=precision)
    game.play(1)
    assert sum(storages(game.backbone).values()) == alone


@pytest.mark.parametrize("precision", PRECISIONS)
def test_samples_logprobs_values_and_scores_do_not_depend_on_batch_mates(precision: Precision) -> None:
    game = Game(ppo_settings(), noisy=True, precision=precision)
    scored = game.rollouts()
    values_BT = scored.values_BT
    gap_BT = (scored.rollouts.sampled_logprobs_BT - scored.logprobs_BT).abs()
    tolerance = 0.1 if precision == "bf16" else 1e-5
    assert float(gap_BT[scored.mask_BT].max()) < 10 * tolerance
    game.settings = ppo_settings(
        micro_batch_tokens=1, sampling=SamplingSettings(max_response_tokens=16, batch_size=1)
    )
    alone = game.rollouts()
    if precision != "bf16":  # rounding decides a few of its tokens
        assert alone.rollouts.response_lists() == scored.rollouts.response_lists()
        assert torch.equal(alone.scores_B, scored.scores_B)
        torch.testing.assert_close(
            alone.rollouts.sampled_logprobs_BT, scored.rollouts.sampled_logprobs_BT, atol=1e-5, rtol=1e-5
        )
    logprobs_BT = score_tokens(game.backbone, scored.rollouts, game.settings, role=POLICY)
    torch.testing.assert_close(logprobs_BT, scored.logprobs_BT, atol=tolerance, rtol=1e-5)
    own_values_BT = score_values(game.backbone, scored.rollouts, game.settings)
    torch.testing.assert_close(own_values_BT, values_BT, atol=tolerance, rtol=1e-5)


def test_the_same_seed_gives_bitwise_the_same_weights() -> None:
    one, two = Game(ppo_settings()), Game(ppo_settings())
    one.play(2)
    two.play(2)
    assert all(torch.equal(a, two.weights()[k]) for k, a in one.weights().items())


def test_value_warm_up_trains_the_value_alone() -> None:
    for value in ("separate", "joint"):
        game = Game(ppo_settings(value=value, value_warmup_iterations=1))
        start = game.weights()
        game.play(1)
        end = game.weights()
        assert all(torch.equal(start[k], end[k]) for k in start if k.startswith("policy."))
        assert any(not torch.equal(start[k], end[k]) for k in start if k.startswith("value."))
        game.updater.update(game.experience(game.rollouts(1)), iteration=1)
        assert any(not torch.equal(start[k], w) for k, w in game.weights().items() if k.startswith("policy."))


def test_an_iteration_stops_early_once_the_policy_has_moved_too_far() -> None:
    game = Game(ppo_settings(policy_learning_rate=0.05, max_approx_kl=1e-3))
    metrics = game.play(1)[0]
    assert metrics["stopped_early"] == 1
    assert metrics["num_steps"] < 6


def test_the_learning_rates_decay_linearly_to_zero() -> None:
    game = Game(ppo_settings())
    rates = []
    for iteration in range(4):
        game.updater.update(game.experience(game.rollouts(iteration)), iteration=iteration)
        rates.append(game.updater.optimization.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_a_loss_that_is_not_finite_is_skipped_counted_and_in_the_end_an_error() -> None:
    from rlhf.errors import UserError

    game = Game(ppo_settings(num_epochs=1, num_minibatches=2))
    batch = game.experience(game.rollouts())
    broken = replace(batch, advantages_BT=batch.advantages_BT * float("nan"))
    start = game.weights()
    metrics = game.updater.update(broken, iteration=0)
    assert metrics["num_skipped_steps"] == 2
    assert all(torch.equal(start[k], w) for k, w in game.weights().items())
    with pytest.raises(UserError, match="3 optimizer steps in a row"):
        game.updater.update(broken, iteration=1)


def test_a_response_without_eos_pays_the_penalty() -> None:
    game = Game(ppo_settings(missing_eos_penalty=2.5))
    scored = game.rollouts()
    ended = scored.rollouts.ended_B
    assert ended.any()
    assert not ended.all()
    expected = scored.scores_B - 2.5 * (~ended).float()
    assert torch.equal(final_scores(scored, game.settings), expected)


def test_every_prompt_is_used_once_before_any_is_used_again() -> None:
    settings = ppo_settings(rollouts_per_iteration=8, samples_per_prompt=2)
    used = [text for k in range(5) for text in schedule(settings, seed=3).of_iteration(k).prompts.texts[::2]]
    assert sorted(used) == sorted(PROMPTS.texts)
    again = schedule(settings, prompts=PROMPTS.take(range(3)), seed=3).of_iteration(0)
    assert len(set(again.prompts.texts)) == 3
    assert len(set(again.keys)) == 8


def test_the_logged_kl_of_a_perturbed_policy_matches_its_exact_value() -> None:
    game = Game(
        ppo_settings(sampling=SamplingSettings(max_response_tokens=1), rollouts_per_iteration=2000),
        noisy=True,
    )
    prompts = PromptSet([[5, 6, 7]] * 2000, ["p"] * 2000)
    scored = game.answer(Requests(prompts, [(0, i, 0) for i in range(2000)]))
    ids = torch.tensor([[5, 6, 7]])
    logs = {}
    for role in (POLICY, REFERENCE):
        with game.backbone.role(role), torch.no_grad():
            hidden = game.backbone.hidden(ids)[:, -1]
            logs[role] = game.backbone.logits(hidden).double().log_softmax(-1)[0]
    exact = float((logs[POLICY].exp() * (logs[POLICY] - logs[REFERENCE])).sum())
    error = float(scored.kl_B.std()) / 2000**0.5
    assert abs(float(scored.kl_B.mean()) - exact) < 4 * error
    assert exact > 10 * error

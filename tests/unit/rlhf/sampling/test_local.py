"""Sampling: the noise of a token belongs to its row, and log-probabilities are those of the draw."""

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, PreTrainedModel

from rlhf.model.backbone import Backbone
from rlhf.parallel.world import world
from rlhf.sampling import local
from rlhf.sampling.engine import sample
from rlhf.sampling.fixed_step import FixedStep
from rlhf.sampling.rollouts import Rollouts, responses_text
from rlhf.settings.groups import ModelSettings, SamplingSettings
from tests.support.small import LORA, perturb, small_backbone, word_tokenizer

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [17, 18, 19, 20]]
KEYS = [(0, i, 0) for i in range(len(PROMPTS))]
SETTINGS = SamplingSettings(max_response_tokens=24, batch_size=8)


def draw(backbone, prompts=PROMPTS, keys=KEYS, seed=7, role="policy", settings=SETTINGS) -> Rollouts:  # type: ignore[no-untyped-def]
    return sample(backbone, prompts, role=role, settings=settings, keys=keys, seed=seed)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_samples_do_not_depend_on_the_batch(batch_size: int) -> None:
    backbone = small_backbone("policy")
    together = draw(backbone)
    apart = draw(backbone, settings=SETTINGS.model_copy(update={"batch_size": batch_size}))
    assert together.response_lists() == apart.response_lists()


def test_samples_do_not_depend_on_the_order() -> None:
    backbone = small_backbone("policy")
    order = [3, 0, 4, 2, 1]
    shuffled = draw(backbone, [PROMPTS[i] for i in order], [KEYS[i] for i in order])
    expected = draw(backbone).response_lists()
    assert shuffled.response_lists() == [expected[i] for i in order]


def test_each_part_of_the_key_and_the_seed_matter() -> None:
    backbone = small_backbone("policy")
    first = draw(
        backbone, [[5, 6]] * 5, [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    ).response_lists()
    assert first[0] == first[4]
    assert len({tuple(r) for r in first}) == 4
    assert draw(backbone, [[5, 6]], [(0, 0, 0)], seed=8).response_lists()[0] != first[0]


def test_a_response_ends_with_its_first_eos_and_only_there() -> None:
    backbone = small_backbone("policy")
    rollouts = draw(backbone, [[5 + i % 40] for i in range(60)], [(0, i, 0) for i in range(60)])
    ended = rollouts.ended_B.tolist()
    assert any(ended)
    assert not all(ended)
    for ids, end in zip(rollouts.response_lists(), ended, strict=True):
        assert 2 not in ids[:-1]
        assert (ids[-1] == 2) == end
        assert end or len(ids) == SETTINGS.max_response_tokens


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_are_those_of_a_full_forward_pass(temperature: float) -> None:
    backbone = small_backbone("policy")
    settings = SETTINGS.model_copy(update={"temperature": temperature})
    rollouts = draw(backbone, settings=settings)
    with backbone.role("policy"), torch.no_grad():
        batch = rollouts.batch()
        hidden = backbone.hidden(batch.tokens, wanted_M=batch.before_response_N)
        logprobs = backbone.logprobs(hidden, batch.response_tokens_N, temperature=temperature)
    torch.testing.assert_close(logprobs, batch.take(rollouts.sampled_logprobs_BT), atol=1e-4, rtol=0)


def test_draws_follow_the_models_distribution() -> None:
    backbone = small_backbone("policy")
    count = 4000
    settings = SamplingSettings(max_response_tokens=1, batch_size=1000)
    rollouts = draw(backbone, [[5, 6]] * count, [(0, i, 0) for i in range(count)], settings=settings)
    with backbone.role("policy"), torch.no_grad():
        ids = torch.tensor([[5, 6]])
        probabilities = backbone.logits(backbone.hidden(ids))[0, -1].softmax(-1)
    counts = torch.bincount(rollouts.response_ids_BT[:, 0], minlength=60).float()
    expected = probabilities * count
    big = expected > 5
    chi_square = float(((counts - expected)[big] ** 2 / expected[big]).sum())
    degrees = int(big.sum())
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("pad_token", ["<eos>", "<unk>", "w3"])
def test_the_pad_token_changes_no_sample(pad_token: str) -> None:
    own = draw(small_backbone("policy"))
    other = draw(small_backbone("policy", pad_token=pad_token))
    assert own.response_lists() == other.response_lists()
    torch.testing.assert_close(own.sampled_logprobs_BT, other.sampled_logprobs_BT, atol=1e-5, rtol=0)


def test_a_stop_string_ends_the_response_and_is_cut_from_the_text() -> None:
    backbone = small_backbone("policy")
    plain = draw(backbone)
    text = responses_text(backbone, plain, SETTINGS)[2]
    stop = text[6:12]
    settings = SETTINGS.model_copy(update={"stop": [stop]})
    stopped = draw(backbone, settings=settings)
    assert bool(stopped.ended_B[2])
    assert len(stopped.response_lists()[2]) < len(plain.response_lists()[2])
    assert responses_text(backbone, stopped, settings)[2] == text[: text.index(stop)]


MANY = [list(range(5, 6 + (7 * i) % 11)) for i in range(30)]
MANY_KEYS = [(3, i, 1) for i in range(len(MANY))]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 29])
def test_a_slot_that_is_free_takes_the_next_prompt_and_nothing_else_changes(batch_size: int) -> None:
    backbone = small_backbone("policy")
    together = draw(backbone, MANY, MANY_KEYS, settings=SETTINGS.model_copy(update={"batch_size": 30}))
    few = SETTINGS.model_copy(update={"batch_size": batch_size})
    refilled = draw(backbone, MANY, MANY_KEYS, settings=few)
    assert together.response_lists() == refilled.response_lists()
    assert together.prompt_lists() == refilled.prompt_lists() == MANY
    torch.testing.assert_close(together.sampled_logprobs_BT, refilled.sampled_logprobs_BT, atol=1e-5, rtol=0)


def test_refilling_takes_fewer_passes_than_batch_after_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = small_backbone("policy")
    passes: list[int] = []
    next_hidden = Backbone.next_hidden

    def counted(self: Backbone, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        passes.append(ids.shape[0] * ids.shape[1])
        return next_hidden(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "next_hidden", counted)
    settings = SETTINGS.model_copy(update={"batch_size": 6})
    draw(backbone, MANY, MANY_KEYS, settings=settings)
    refilled = len(passes)
    passes.clear()
    backbone.has_plain_cache = False
    draw(backbone, MANY, MANY_KEYS, settings=settings)
    assert refilled < len(passes)


def test_both_ways_of_decoding_draw_the_same() -> None:
    backbone = small_backbone("policy")
    settings = SETTINGS.model_copy(update={"batch_size": 4})
    slots = draw(backbone, MANY, MANY_KEYS, settings=settings)
    backbone.has_plain_cache = False
    plain = draw(backbone, MANY, MANY_KEYS, settings=settings)
    assert slots.response_lists() == plain.response_lists()
    torch.testing.assert_close(slots.sampled_logprobs_BT, plain.sampled_logprobs_BT, atol=1e-5, rtol=0)


def other_backbone(folder: Path, model: PreTrainedModel, attention: str = "sdpa") -> Backbone:
    """A backbone on another architecture, with a policy that differs from its base."""
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    settings = ModelSettings.model_validate({"path": str(folder), "attention": attention})
    backbone = Backbone.load(folder, settings=settings)
    backbone.add_adapter("policy", LORA, seed=1)
    perturb(backbone, "policy", seed=2)
    return backbone


def sliding_model() -> PreTrainedModel:
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=6, max_position_embeddings=64, initializer_range=0.2,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def learned_positions_model() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [sliding_model, learned_positions_model])
def test_other_architectures_are_sampled_with_the_logprobs_of_a_full_forward_pass(
    tmp_path: Path, make: Callable[[], PreTrainedModel], attention: str
) -> None:
    torch.manual_seed(0)
    backbone = other_backbone(tmp_path, make(), attention)
    settings = SETTINGS.model_copy(update={"batch_size": 4})
    rollouts = draw(backbone, MANY, MANY_KEYS, settings=settings)
    assert int(rollouts.response_lengths_B.max()) > 12  # longer than the window
    with backbone.role("policy"), torch.no_grad():
        batch = rollouts.batch()
        hidden = backbone.hidden(batch.tokens, wanted_M=batch.before_response_N)
        logprobs = backbone.logprobs(hidden, batch.response_tokens_N, temperature=1.0)
    torch.testing.assert_close(logprobs, batch.take(rollouts.sampled_logprobs_BT), atol=1e-4, rtol=0)


def test_a_response_of_one_token_needs_no_decoding_step() -> None:
    settings = SamplingSettings(max_response_tokens=1, batch_size=4)
    rollouts = draw(small_backbone("policy"), MANY, MANY_KEYS, settings=settings)
    assert rollouts.response_lengths_B.tolist() == [1] * len(MANY)


@pytest.mark.parametrize("batch_size", [4, 30])
def test_steps_of_one_shape_draw_the_same(monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    backbone = small_backbone("policy")
    settings = SETTINGS.model_copy(update={"batch_size": batch_size})
    free = draw(backbone, MANY, MANY_KEYS, settings=settings)
    monkeypatch.setattr(local, "fixed_shapes_pay", lambda device, settings: True)
    fixed = draw(backbone, MANY, MANY_KEYS, settings=settings)
    assert free.response_lists() == fixed.response_lists()
    torch.testing.assert_close(free.sampled_logprobs_BT, fixed.sampled_logprobs_BT, atol=1e-5, rtol=0)


def test_a_slot_that_waits_keeps_within_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(local, "REFILL_SHARE", 0.75)  # a long wait for those that end first
    monkeypatch.setattr(local, "fixed_shapes_pay", lambda device, settings: True)
    backbone = other_backbone(tmp_path, learned_positions_model())
    prompts = [[5, 6, 7, 8] for _ in range(40)]
    settings = SamplingSettings(max_response_tokens=60, batch_size=8)
    rollouts = draw(backbone, prompts, [(0, i, 0) for i in range(40)], settings=settings)
    lengths = rollouts.response_lengths_B
    assert int(lengths.min()) < 30 < int(lengths.max()) == 60


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_nothing_keeps_the_cache_when_the_last_token_is_drawn(
    monkeypatch: pytest.MonkeyPatch, fixed_shapes: bool
) -> None:
    """On a large model it is most of the memory, which training needs next; no collector is waited for."""
    decoders: list[weakref.ref[local.SlotDecoder]] = []
    run = local.SlotDecoder.run

    def watched(self: local.SlotDecoder, order: Sequence[int]) -> None:
        decoders.append(weakref.ref(self))
        run(self, order)

    monkeypatch.setattr(local.SlotDecoder, "run", watched)
    monkeypatch.setattr(local, "fixed_shapes_pay", lambda device, settings: fixed_shapes)
    backbone = small_backbone("policy")
    gc.disable()
    try:
        draw(backbone)
        assert [decoder() for decoder in decoders] == [None]
    finally:
        gc.enable()


def test_no_step_is_captured_where_a_pass_gathers_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replayed step would skip the gathers that the other ranks wait in."""
    steps: list[bool] = []

    class Captured(FixedStep):
        def __call__(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
            steps.append(world().passes_are_collectives)
            return super().__call__(run)

    monkeypatch.setattr(local, "fixed_shapes_pay", lambda device, settings: True)
    monkeypatch.setattr(local, "FixedStep", Captured)
    backbone = small_backbone("policy")
    free = draw(backbone, MANY, MANY_KEYS)
    assert steps
    assert not any(steps)
    steps.clear()
    with world().before_collectives(lambda: None):
        gathering = draw(backbone, MANY, MANY_KEYS)
    assert not steps
    assert free.response_lists() == gathering.response_lists()

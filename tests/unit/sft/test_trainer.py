"""Training by TRL: what a step is made of, and what it must not depend on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from rlhf.config import LengthSettings, LoraSettings
from rlhf.errors import UserError
from sft.data import Example
from sft.trainer import SeededOrder, newest_checkpoint
from tests.unit.sft.demos import Log, random_examples, sft_settings, small_start, trainer, weights

EXAMPLES = random_examples(22)


def run(folder: Path, *, seed: int = 0, pad_token: str = "<pad>", **values: Any) -> dict[str, torch.Tensor]:
    settings = sft_settings(**values)
    begin = small_start(folder, settings, pad_token=pad_token)
    trained = trainer(folder, settings, EXAMPLES, begin=begin, seed=seed)
    trained.train()
    return weights(trained)


def brute_force_loss(model: Any, examples: list[Example]) -> torch.Tensor:
    """Mean over completion tokens, one example at a time, without padding."""
    losses = []
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.completion_ids])
        logits = model(ids).logits[0, :-1]
        first = len(example.prompt_ids) - 1
        losses.append(cross_entropy(logits[first:], ids[0, first + 1 :], reduction="none"))
    return torch.cat(losses).mean()


def assert_close(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor], atol: float) -> None:
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        torch.testing.assert_close(one, others[name], atol=atol, rtol=0, msg=name)


class TestOrder:
    def test_every_example_comes_once_an_epoch(self) -> None:
        order = SeededOrder([3] * 101, batch_size=8, seed=0)
        assert sorted(order) == list(range(101))

    def test_seed_and_epoch_alone_decide(self) -> None:
        order, again = (SeededOrder(range(50), batch_size=8, seed=4) for _ in range(2))
        first = list(order)
        np.random.random(3)
        assert list(again) == first
        again.epoch = 1
        assert list(again) != first
        assert list(SeededOrder(range(50), batch_size=8, seed=5)) != first

    def test_lengths_reorder_only_within_an_optimizer_step(self) -> None:
        lengths = np.random.default_rng(0).integers(1, 100, size=50)
        plain = list(SeededOrder([1] * 50, batch_size=8, seed=0))
        sorted_ = list(SeededOrder(lengths.tolist(), batch_size=8, seed=0))
        for first in range(0, 50, 8):
            step = sorted_[first : first + 8]
            assert set(step) == set(plain[first : first + 8])
            assert lengths[step].tolist() == sorted(lengths[step].tolist(), reverse=True)


def test_the_logged_loss_is_over_completion_tokens_alone(tmp_path: Path) -> None:
    settings = sft_settings(num_epochs=1, batch_size=22, micro_batch_size=22)
    begin, log = small_start(tmp_path, settings), Log()
    with torch.no_grad():
        expected = brute_force_loss(begin.model, EXAMPLES)
    trained = trainer(tmp_path, settings, EXAMPLES, begin=begin, log=log)
    trained.train()
    ((step, figures),) = log.rows
    assert step == 1
    assert figures["sft/loss_nats_per_token"] == pytest.approx(expected.item(), abs=1e-5)
    num_tokens = sum(example.num_tokens for example in EXAMPLES)
    assert figures["sft/tokens_seen"] == num_tokens


def test_one_step_is_adam_on_the_clipped_gradient_of_that_loss(tmp_path: Path) -> None:
    settings = sft_settings(num_epochs=1, batch_size=22, micro_batch_size=2, warmup_fraction=0.0)
    begin, reference = small_start(tmp_path, settings), small_start(tmp_path, settings).model
    brute_force_loss(reference, EXAMPLES).backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), settings.max_grad_norm)
    torch.optim.AdamW(reference.parameters(), lr=settings.learning_rate, weight_decay=0.0).step()
    trained = trainer(tmp_path, settings, EXAMPLES, begin=begin)
    trained.train()
    # Adam's first step is lr · sign(g): where a gradient is all but zero, rounding decides its sign.
    for name, weight in reference.named_parameters():
        assert weight.grad is not None
        clear = weight.grad.abs() > 1e-6
        torch.testing.assert_close(weights(trained)[name][clear], weight.detach()[clear], atol=2e-4, rtol=0)


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_micro_batches_change_no_weight(tmp_path: Path, micro_batch_size: int) -> None:
    whole = run(tmp_path, learning_rate=1e-3)
    assert_close(whole, run(tmp_path, learning_rate=1e-3, micro_batch_size=micro_batch_size), atol=2e-5)


def test_gradient_checkpointing_changes_no_weight(tmp_path: Path) -> None:
    assert_close(run(tmp_path), run(tmp_path, gradient_checkpointing=True), atol=1e-6)


@pytest.mark.parametrize("pad_token", ["<eos>", "<unk>", "w3"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_pads_changes_no_weight(tmp_path: Path, pad_token: str, method: str) -> None:
    own, other = run(tmp_path, method=method), run(tmp_path, method=method, pad_token=pad_token)
    assert_close(own, other, atol=0.0)


def test_a_pad_that_is_also_a_token_is_trained(tmp_path: Path) -> None:
    bos, settings = 1, sft_settings()
    small_start(tmp_path, settings, pad_token="<bos>")
    config = tmp_path / "base-bos" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": bos}))
    begin = small_start(tmp_path, settings, pad_token="<bos>")
    before = begin.model.get_input_embeddings().weight[bos].detach().clone()
    assert before.any()
    trainer(tmp_path, settings, EXAMPLES, begin=begin).train()
    assert not torch.equal(begin.model.get_input_embeddings().weight[bos], before)


def test_the_seed_decides_the_order_and_repeats_the_run(tmp_path: Path) -> None:
    assert_close(run(tmp_path, seed=1), run(tmp_path, seed=1), atol=0.0)
    one, two = run(tmp_path, seed=1), run(tmp_path, seed=2)
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_packing_changes_no_weight(tmp_path: Path, num_micro_batches: int) -> None:
    # One step an epoch over everything: then packed rows and single examples make the same sum.
    length = LengthSettings(max_tokens=64)
    common: dict[str, Any] = {"num_epochs": 3, "learning_rate": 1e-3}
    single = run(tmp_path, batch_size=22, micro_batch_size=22, **common)
    packed = run(
        tmp_path, batch_size=8, micro_batch_size=8 // num_micro_batches, packing=True, length=length, **common
    )
    assert_close(single, packed, atol=5e-5)


def test_packing_loses_no_token(tmp_path: Path) -> None:
    settings = sft_settings(packing=True, length=LengthSettings(max_tokens=64), num_epochs=1)
    packed = trainer(tmp_path, settings, EXAMPLES)
    assert len(packed.lengths) < len(EXAMPLES)
    assert sum(packed.lengths) == sum(example.num_tokens for example in EXAMPLES)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_rises_and_then_follows_its_schedule(
    tmp_path: Path, schedule: str, expected: list[float]
) -> None:
    log = Log()
    settings = sft_settings(schedule=schedule, warmup_fraction=1 / 3, learning_rate=1.0, max_grad_norm=1e-9)
    trainer(tmp_path, settings, EXAMPLES, log=log).train()
    rates = [figures["sft/learning_rate"] for _, figures in log.rows]
    assert rates == pytest.approx(expected, abs=1e-5)


class Stop(TrainerCallback):
    """Ends the run after a number of steps, as if it had been killed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "step", [2, 3, 4, 9], ids=["within an epoch", "at its end", "in the next one", "after the last step"]
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_ends_with_the_same_weights_to_the_bit(tmp_path: Path, step: int, method: str) -> None:
    settings = sft_settings(checkpoint_every_steps=1, num_epochs=3, micro_batch_size=4, method=method)
    whole = trainer(tmp_path / "a", settings, EXAMPLES, begin=small_start(tmp_path, settings))
    whole.train()
    killed = trainer(tmp_path / "b", settings, EXAMPLES, begin=small_start(tmp_path, settings))
    killed.add_callback(Stop(step))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    checkpoint = newest_checkpoint(tmp_path / "b" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step}"
    log = Log()
    resumed = trainer(tmp_path / "b", settings, EXAMPLES, begin=small_start(tmp_path, settings), log=log)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert [at for at, _ in log.rows] == list(range(step + 1, 10))
    assert_close(weights(whole), weights(resumed), atol=0.0)


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    settings = sft_settings(checkpoint_every_steps=2)
    trainer(tmp_path, settings, EXAMPLES).train()
    assert [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path: Path) -> None:
    for step, complete in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-10"
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path: Path) -> None:
    settings = sft_settings()
    begin = small_start(tmp_path, settings)
    begin.model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"the loss is nan at step 1"):
        trainer(tmp_path, settings, EXAMPLES, begin=begin).train()


@pytest.mark.parametrize("target", ["lm_head", "q_prj"])
def test_lora_on_a_module_that_cannot_take_it_is_refused(tmp_path: Path, target: str) -> None:
    settings = sft_settings(method="lora", lora=LoraSettings(target_modules=[target]))
    with pytest.raises(UserError, match=f"no linear module `{target}`"):
        trainer(tmp_path, settings, EXAMPLES)


def test_lora_trains_nothing_but_its_adapter(tmp_path: Path) -> None:
    settings = sft_settings(method="lora")
    built = trainer(tmp_path, settings, EXAMPLES)
    before = weights(built)
    built.train()
    changed = {name for name, weight in weights(built).items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if ".lora_" in name}

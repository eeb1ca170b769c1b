"""Training of the reward adapter: what a step depends on, and what it must not depend on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from reward.trainer import Trainer
from rlhf.training.nonfinite import NotFiniteError
from tests.support.small import small_backbone
from tests.unit.reward.groups import random_groups, reward_settings

GROUPS = random_groups(30)


def trainer(
    *, pad_token: str = "<pad>", seed: int = 0, num_layers_seed: int = 0, **values: object
) -> Trainer:
    backbone = small_backbone(pad_token=pad_token, seed=num_layers_seed)
    return Trainer(backbone, GROUPS, reward_settings(**values), seed=seed)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.named.items()}


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    for _ in range(2):  # a fresh adapter has B = 0, and then no gradient reaches A
        trainer.step()
    trainer.optimization.optimizer.zero_grad()
    trainer.accumulate(GROUPS[:12])
    return {
        name: parameter.grad.clone()
        for name, parameter in trainer.named.items()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("tokens", [1, 100, 300])
def test_gradients_do_not_depend_on_micro_batches(tokens: int) -> None:
    whole = gradients(trainer(micro_batch_tokens=100_000))
    parts = gradients(trainer(micro_batch_tokens=tokens))
    assert set(whole) == set(trainer().named)
    for name, gradient in whole.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(parts[name] / scale, gradient / scale, atol=2e-4, rtol=0)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, recomputed = gradients(trainer()), gradients(trainer(gradient_checkpointing=True))
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("pad_token", ["<eos>", "<unk>", "w3"])
def test_the_choice_of_pad_token_changes_nothing(pad_token: str) -> None:
    other, own = trainer(pad_token=pad_token), trainer()
    for _ in range(3):
        other.step()
        own.step()
    for name, parameter in weights(own).items():
        assert torch.equal(weights(other)[name], parameter)


def test_a_score_depends_on_no_neighbour() -> None:
    one = trainer(micro_batch_tokens=1)
    together = one.score_groups(GROUPS)
    for group, scores in zip(GROUPS, together, strict=True):
        torch.testing.assert_close(
            torch.tensor(one.score_groups([group])[0]), torch.tensor(scores), atol=1e-5, rtol=1e-4
        )
    batched = trainer(micro_batch_tokens=100_000).score_groups(GROUPS)
    flat = [torch.tensor([s for scores in found for s in scores]) for found in (together, batched)]
    torch.testing.assert_close(flat[0], flat[1], atol=1e-5, rtol=1e-4)


def test_an_epoch_takes_every_group_once_in_an_order_of_its_own() -> None:
    one = trainer(num_epochs=2)
    assert one.steps_per_epoch == 4
    assert one.num_steps == 8
    epochs = [[group.key for step in range(e * 4, e * 4 + 4) for group in one.batch(step)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(group.key for group in GROUPS)
    assert epochs[0] != epochs[1]
    assert [g.key for g in one.batch(2)] == [g.key for g in trainer(num_epochs=2).batch(2)]
    assert [g.key for g in one.batch(2)] != [g.key for g in trainer(num_epochs=2, seed=1).batch(2)]


def test_it_learns_an_order_and_touches_nothing_but_its_adapter_and_head() -> None:
    one = trainer(num_epochs=20)
    base = {k: v.clone() for k, v in one.backbone.model.state_dict().items() if ".lora_" not in k}
    before = weights(one)
    while one.next_step < one.num_steps:
        one.step()
    assert one.accumulate(GROUPS)["accuracy"] > 0.97
    after = one.backbone.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert all(not torch.equal(weights(one)[name], value) for name, value in before.items())
    assert all(parameter.dtype == torch.float32 for parameter in one.named.values())


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "num_epochs": 2,
        "schedule": "cosine",
        "warmup_fraction": 0.3,
        "weight_decay": 0.1,
    }
    straight, first, second = trainer(**options), trainer(**options), trainer(**options)
    while straight.next_step < straight.num_steps:
        straight.step()
    for _ in range(3):
        first.step()
    first.save(tmp_path)
    first.step()  # not saved: it is as if the process had died here
    assert second.restore(tmp_path)
    assert second.next_step == 3
    while second.next_step < second.num_steps:
        second.step()
    assert all(torch.equal(weights(second)[name], value) for name, value in weights(straight).items())
    assert second.take_window() == straight.take_window()


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path: Path) -> None:
    assert not trainer().restore(tmp_path)


def test_learning_rates_rise_and_fall() -> None:
    linear = trainer(num_epochs=5, warmup_fraction=0.2)  # 20 steps, 4 of them warm-up
    factors = [linear.learning_rate_factor(step) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[5:] == pytest.approx([1 - (step - 4) / 16 for step in range(5, 20)])
    cosine = trainer(num_epochs=5, schedule="cosine")
    assert cosine.learning_rate_factor(0) == 1
    assert cosine.learning_rate_factor(10) == pytest.approx(0.5)
    constant = trainer(num_epochs=5, schedule="constant")
    assert constant.learning_rate_factor(19) == 1


def test_head_and_adapter_have_learning_rates_of_their_own() -> None:
    one = trainer(learning_rate=1e-3, head_learning_rate=4e-2, schedule="constant")
    before = weights(one)
    one.step()
    moved = {name: float((weights(one)[name] - value).abs().max()) for name, value in before.items()}
    assert moved["head.weight"] == pytest.approx(4e-2, rel=1e-3)  # AdamW's first step is the learning rate
    assert max(value for name, value in moved.items() if "lora_B" in name) == pytest.approx(1e-3, rel=1e-2)


def test_steps_that_are_not_finite_are_skipped_and_stop_the_run_in_the_end() -> None:
    one = trainer(num_epochs=4)
    one.step()
    good = weights(one)
    head = one.backbone.heads["reward"]
    handle = head.register_forward_hook(lambda _module, _inputs, output: output * float("nan"))
    one.step()
    one.step()
    assert (one.guard.skipped_steps, one.next_step) == (2, 3)
    assert all(torch.equal(weights(one)[name], value) for name, value in good.items())
    handle.remove()
    one.step()
    assert one.guard.skipped_in_a_row == 0
    assert one.take_window()["skipped_steps"] == 2
    good = weights(one)
    head.register_forward_hook(lambda _module, _inputs, output: output * float("nan"))
    one.step()
    one.step()
    before = (one.next_step, one.guard.state())
    with pytest.raises(NotFiniteError, match="3 optimizer steps in a row"):
        one.step()
    assert (one.next_step, one.guard.state()) == before  # so that going on tries this step again
    assert all(torch.equal(weights(one)[name], value) for name, value in good.items())

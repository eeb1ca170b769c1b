"""Training by TRL: what a step is made of, and what it must not depend on."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import send_telemetry  # type: ignore[attr-defined]
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl import SFTConfig

from rlhf.errors import UserError
from rlhf.runs import checkpoints
from rlhf.settings.groups import LengthSettings, LoraSettings
from rlhf.training.nonfinite import NotFiniteError
from sft.data import Example
from sft.resumable import Trainer
from tests.unit.sft.demos import Log, poison, random_examples, sft_settings, small_start, trainer, weights

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


def test_the_logged_loss_is_over_completion_tokens_alone(tmp_path: Path) -> None:
    settings = sft_settings(num_epochs=1, batch_size=22, micro_batch_size=22)
    begin, log = small_start(tmp_path, settings), Log()
    with torch.no_grad():
        expected = brute_force_loss(begin.model, EXAMPLES)
    trained = trainer(tmp_path, settings, EXAMPLES, begin=begin, log=log)
    trained.train()
    ((step, metrics),) = log.rows
    assert step == 1
    assert metrics["sft/loss_nats_per_token"] == pytest.approx(expected.item(), abs=1e-5)
    num_tokens = sum(example.num_tokens for example in EXAMPLES)
    assert metrics["sft/tokens_seen"] == num_tokens


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
    lengths = packed.order.lengths.tolist()
    assert len(lengths) < len(EXAMPLES)
    assert sum(lengths) == sum(example.num_tokens for example in EXAMPLES)


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
    rates = [metrics["sft/learning_rate"] for _, metrics in log.rows]
    assert rates == pytest.approx(expected, abs=1e-5)


class Stop(TrainerCallback):
    """Ends the run after a number of steps, when their checkpoint is written, as if it had been killed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


TIMING = "sft/tokens_per_second"


def untimed(log: Log) -> list[tuple[int, dict[str, float]]]:
    return [(step, {k: v for k, v in metrics.items() if k != TIMING}) for step, metrics in log.rows]


@pytest.mark.parametrize(
    "step", [2, 3, 4, 9], ids=["within an epoch", "at its end", "in the next one", "after the last step"]
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_ends_with_bitwise_the_same_weights_and_metrics(
    tmp_path: Path, step: int, method: str
) -> None:
    settings = sft_settings(checkpoint_every_steps=1, num_epochs=3, micro_batch_size=4, method=method)

    def built(name: str, log: Log) -> Trainer:
        begin = small_start(tmp_path, settings)
        for module in begin.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.2  # random numbers are used up in every step
        return trainer(tmp_path / name, settings, EXAMPLES, begin=begin, log=log, log_every_steps=4)

    straight, first, second = Log(), Log(), Log()
    whole = built("a", straight)
    whole.train()
    killed = built("b", first)
    killed.add_callback(Stop(step))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    found = checkpoints.latest(tmp_path / "b")
    assert found is not None
    assert found.step == step
    resumed = built("b", second)
    resumed.resume_from(found)
    torch.manual_seed(99)
    resumed.train()
    assert untimed(first) + untimed(second) == untimed(straight)
    assert [at for at, _ in straight.rows] == [4, 8]
    assert_close(weights(whole), weights(resumed), atol=0.0)


def test_a_run_that_ended_within_an_epoch_takes_no_further_step_when_resumed(tmp_path: Path) -> None:
    settings = sft_settings(checkpoint_every_steps=1, num_epochs=1.5, schedule="constant")
    whole = trainer(tmp_path, settings, EXAMPLES)
    whole.train()
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 5
    resumed = trainer(tmp_path, settings, EXAMPLES, begin=small_start(tmp_path, settings))
    resumed.resume_from(found)
    resumed.train()
    assert resumed.state.global_step == 5
    assert_close(weights(whole), weights(resumed), atol=0.0)


def test_the_newest_checkpoints_are_kept_and_the_best(tmp_path: Path) -> None:
    settings = sft_settings(checkpoint_every_steps=1, eval_every_steps=1, keep_checkpoints=2)
    losses = iter([3.0, 1.0, 2.0, 4.0, 1.0])
    evaluate = lambda model: {"sft/heldout_loss_nats_per_token": next(losses)}  # noqa: E731
    trainer(tmp_path, settings, EXAMPLES, evaluate=evaluate).train()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000005", "step-000006"]


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    log = Log()
    trained = trainer(tmp_path, sft_settings(), EXAMPLES, log=log, log_every_steps=2)
    poison(trained, {3, 4})
    trained.train()
    assert [step for step, _ in log.rows] == [2, 6]
    assert all(np.isfinite(list(metrics.values())).all() for _, metrics in log.rows)
    assert [metrics["sft/skipped_steps"] for _, metrics in log.rows] == [0.0, 2.0]
    assert all(bool(weight.isfinite().all()) for weight in weights(trained).values())


@pytest.mark.parametrize("gradient", [True, False])
def test_a_line_of_metrics_that_ends_with_a_step_left_out_is_of_the_steps_before(
    tmp_path: Path, gradient: bool
) -> None:
    poisoned, straight = Log(), Log()
    trained = trainer(tmp_path / "a", sft_settings(), EXAMPLES, log=poisoned, log_every_steps=2)
    poison(trained, {4}, gradient=gradient)
    trained.train()
    trainer(tmp_path / "b", sft_settings(), EXAMPLES, log=straight).train()
    assert [step for step, _ in poisoned.rows] == [2, 4, 6]
    names = ("sft/gradient_norm", "sft/loss_nats_per_token", "sft/token_accuracy")
    line, third = poisoned.rows[1][1], straight.rows[2][1]
    assert [line[name] for name in names] == [third[name] for name in names]


def test_a_loss_that_stays_not_a_number_ends_the_run_before_it_harms_the_weights(tmp_path: Path) -> None:
    trained = trainer(tmp_path, sft_settings(checkpoint_every_steps=1), EXAMPLES)
    poison(trained, {2, 3, 4})
    with pytest.raises(NotFiniteError, match="3 optimizer steps in a row"):
        trained.train()
    trained.save()
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert (found.step, found.state["skipped_steps"]) == (3, 2)
    assert all(bool(tensor.isfinite().all()) for tensor in found.tensors.values())


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


def test_one_device_is_used_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SFTConfig, "n_gpu", property(lambda arguments: 4))
    trained = trainer(tmp_path, sft_settings(batch_size=8, micro_batch_size=8), EXAMPLES)
    assert (trained.args.n_gpu, trained.args.train_batch_size) == (1, 8)


def test_building_a_trainer_reports_nothing_to_hugging_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            del args

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("CI", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        trainer(tmp_path, sft_settings(), EXAMPLES)
        send_telemetry("after-it")  # the same thread sends all, in order
        while not requests:
            time.sleep(0.01)
        server.shutdown()
    assert requests == ["/api/telemetry/after-it"]

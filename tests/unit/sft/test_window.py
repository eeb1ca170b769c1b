"""What a line of the metrics is about, also when a step is left out or training resumes."""

import json

import pytest
import torch

from sft.window import Window

CPU = torch.device("cpu")


def add(window: Window, loss: float, *, entropy: float, tokens: int) -> None:
    window.add_loss(torch.tensor(loss))
    window.add_report({"entropy": entropy, "mean_token_accuracy": 0.5, "num_tokens": float(tokens)})


def test_a_line_is_the_mean_over_its_steps_and_micro_batches() -> None:
    window = Window(CPU)
    for number in range(1, 5):  # two micro-batches a step
        add(window, number, entropy=number, tokens=10 * number)
        if number % 2 == 0:
            window.take_step(gradient_norm=float(number))
    line = window.close()
    assert line["sft/loss_nats_per_token"] == (1 + 2 + 3 + 4) / 2
    assert line["sft/entropy_nats_per_token"] == (1 + 2 + 3 + 4) / 4
    assert line["sft/gradient_norm"] == 4.0
    assert line["sft/tokens_seen"] == 40.0
    assert window.num_steps == 0


def test_of_a_step_that_is_left_out_nothing_is_logged_but_its_tokens() -> None:
    window = Window(CPU)
    add(window, 1.0, entropy=2.0, tokens=10)
    window.take_step(gradient_norm=3.0)
    add(window, float("nan"), entropy=float("nan"), tokens=25)
    window.leave_out_step()
    line = window.close()
    assert line["sft/loss_nats_per_token"] == 1.0
    assert line["sft/entropy_nats_per_token"] == 2.0
    assert line["sft/gradient_norm"] == 3.0
    assert line["sft/tokens_seen"] == 25.0


@pytest.mark.parametrize("cut", range(5))
def test_a_window_restored_from_a_checkpoint_ends_in_the_same_line(cut: int) -> None:
    steps = [(0.1, 0.7, 5), (0.2, 0.6, 9), (0.3, 0.5, 14), (0.4, 0.4, 20)]

    def run(window: Window, first: int, last: int, *, tokens_before: int = 0) -> None:
        for loss, entropy, tokens in steps[first:last]:
            add(window, loss, entropy=entropy, tokens=tokens - tokens_before)
            window.take_step(gradient_norm=loss)

    straight, first, second = Window(CPU), Window(CPU), Window(CPU)
    run(straight, 0, 4)
    run(first, 0, cut)
    state = json.loads(json.dumps(first.state(cut)))
    second.restore(cut, first.tensors(), state)
    # TRL counts tokens since its process began.
    run(second, cut, 4, tokens_before=steps[cut - 1][2] if cut else 0)
    assert second.close() == straight.close()


def test_a_checkpoint_says_after_which_step_the_last_line_was() -> None:
    window = Window(CPU)
    add(window, 1.0, entropy=1.0, tokens=3)
    window.take_step(gradient_norm=1.0)
    assert window.state(7)["last_logged_step"] == 6
    window.close()
    assert window.state(7)["last_logged_step"] == 7

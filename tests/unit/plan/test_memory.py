"""What ZeRO leaves on a device, by hand."""

from collections import Counter

import pytest

from plan.ledger import ACTIVATIONS, GRADIENTS
from plan.memory import ADAPTERS, GATHERED, OPTIMIZER, WEIGHTS, Devices, Phase, Resident, StagePlan, phase

LORA = Resident(weights=8000, largest_part=1000, adapters=100, trained=40)
"""40 of 100 adapter parameters are trained: 160 bytes of gradients."""


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (0, {WEIGHTS: 8000, ADAPTERS: 400, OPTIMIZER: 320, GRADIENTS: 160}),
        (1, {WEIGHTS: 8000, ADAPTERS: 400, OPTIMIZER: 120, GRADIENTS: 160 + 160}),
        (2, {WEIGHTS: 8000, ADAPTERS: 400, OPTIMIZER: 120, GRADIENTS: 40 + 160}),
        (3, {WEIGHTS: 2000, GATHERED: 2000, ADAPTERS: 100, OPTIMIZER: 120, GRADIENTS: 40 + 160}),
    ],
)
def test_zero_shards_what_its_stage_says(zero: int, expected: dict[str, int]) -> None:
    profile = {"": Counter({GRADIENTS: LORA.gradients})}
    assert +phase("training", LORA, profile, Devices(num=4, zero=zero)).bytes == expected


@pytest.mark.parametrize("zero", range(4))
def test_on_one_device_zero_shards_nothing(zero: int) -> None:
    rows = LORA.bytes(Devices(zero=zero))
    assert (rows[WEIGHTS], rows[ADAPTERS], rows[GATHERED]) == (8000, 400, 0)
    assert rows[OPTIMIZER] == (8 if zero == 0 else 12) * 40


def test_packed_weights_stay_whole() -> None:
    packed = Resident(8000, 1000, 100, 40, shardable=False)
    rows = packed.bytes(Devices(num=4, zero=3))
    assert (rows[WEIGHTS], rows[GATHERED], rows[ADAPTERS]) == (8000, 0, 100)


def test_shards_that_do_not_come_out_even_are_rounded_up() -> None:
    assert Devices(num=3, zero=1).share(100, from_zero=1) == 34


def test_a_phase_is_its_highest_section_and_a_stage_its_highest_phase() -> None:
    profile = {"a": Counter({ACTIVATIONS: 5}), "b": Counter({ACTIVATIONS: 1, GRADIENTS: 160})}
    training = phase("training", LORA, profile, Devices())
    assert (training.bytes[ACTIVATIONS], training.bytes[GRADIENTS]) == (1, 160)
    other = Phase("update", Counter({WEIGHTS: training.total - 1}))
    assert StagePlan("ppo", (other, training)).peak is training

"""Honest probabilities as labels, or the likelier side of each: what reward models learn of certainty."""

import math
import random

import pytest

from reward.data import Group
from reward.loss import Pair
from reward.trainer import Trainer
from rlhf.statistics.evaluation import calibration_error
from tests.support.small import small_backbone
from tests.unit.reward.groups import EOS, reward_settings

WORDS = range(10, 34)
NUM_TRAIN, NUM_HELD_OUT, NUM_STEPS = 480, 1500, 90


def pairs(num: int, *, seed: int) -> list[tuple[Group, float]]:
    """Two completions of one word each; how good the words are decides the probability of each pair."""
    rng = random.Random(seed)
    quality = {word: rng.uniform(-1.5, 1.5) for word in WORDS}
    drawn = random.Random(f"{seed} {num}")
    found = []
    for number in range(num):
        first, second = drawn.sample(WORDS, 2)
        probability = 1 / (1 + math.exp(quality[second] - quality[first]))
        group = Group(
            key=f"{number}",
            prompt="",
            completions=("a", "b"),
            labels=("", ""),
            prompt_ids=[1, drawn.randint(34, 50)],
            response_ids=[[first, EOS], [second, EOS]],
            pairs=[Pair(0, 1, probability)],
        )
        found.append((group, probability))
    return found


def argmax(group: Group) -> Group:
    """The same pair, labelled with its likelier side alone."""
    [(first, second, probability, _)] = group.pairs
    better = Pair(first, second, 1.0) if probability > 0.5 else Pair(second, first, 1.0)
    return Group(**{**vars(group), "pairs": [better]})


def held_out_error(train: list[Group], *, seed: int) -> float:
    """ECE of a reward model that was trained on `train`, against labels drawn from the probabilities."""
    settings = reward_settings(batch_size=16, num_epochs=3, schedule="constant")
    trainer = Trainer(small_backbone(seed=seed), train, settings, seed=seed)
    for _ in range(NUM_STEPS):
        trainer.step()
    held_out = pairs(NUM_HELD_OUT, seed=seed)
    scores = trainer.score_groups([group for group, _ in held_out])
    rng = random.Random(seed)
    outcomes = [float(rng.random() < probability) for _, probability in held_out]
    error = calibration_error([first - second for first, second in scores], outcomes)
    assert error is not None
    return error


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_soft_labels_leave_a_reward_model_better_calibrated_than_hard_ones(seed: int) -> None:
    train = [group for group, _ in pairs(NUM_TRAIN, seed=seed)]
    soft = held_out_error(train, seed=seed)
    hard = held_out_error([argmax(group) for group in train], seed=seed)
    print(f"seed {seed}: ECE {soft:.3f} with soft labels, {hard:.3f} with hard ones")
    assert soft < 0.06
    assert hard > 2 * soft

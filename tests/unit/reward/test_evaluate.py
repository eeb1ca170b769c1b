"""Held-out metrics of groups whose labels, scores and lengths are set by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from reward.data import Group
from reward.evaluate import HeldOut, evaluate, report
from reward.loss import Pair, ranked_pairs
from reward.model import RewardCard
from tests.unit.reward.groups import reward_settings

F = math.inf
CARD = RewardCard(
    base_sha256="",
    precision="fp32",
    mean=1.0,
    std=2.0,
    num_reference_samples=2,
    eos_ids=[2],
    max_tokens=9,
)


def group(
    key: str, lengths: Sequence[int], *, ranks: Sequence[float] = (), pairs: Sequence[Pair] = ()
) -> Group:
    return Group(
        key=key,
        prompt=f"say {key}",
        completions=tuple(f"{key}{k}" for k in range(len(lengths))),
        labels=tuple(f"rank {rank}" for rank in ranks) or ("",) * len(lengths),
        prompt_ids=[1],
        response_ids=[[5] * (length - 1) + [2] for length in lengths],
        pairs=list(pairs) or ranked_pairs(ranks, with_ties=True),
    )


def metrics(
    groups: Sequence[Group], scores: list[list[float]], gold: list[list[float]] | None = None
) -> dict[str, float]:
    return evaluate(groups, scores, tie_margin=None, gold=gold, seed=0)


def test_accuracy_and_longer_wins_by_hand() -> None:
    groups = [group("a", [5, 3, 3], ranks=[1, 2, F]), group("b", [2, 9], ranks=[1, 2])]
    found = metrics(groups, [[3.0, 1.0, 1.0], [0.0, 4.0]])
    assert found["num_groups"] == 2
    assert found["num_pairs"] == 4
    assert found["accuracy"] == 2.5 / 4  # right, right, equal; wrong
    assert found["longer_accuracy"] == 2.5 / 4  # longer, longer, equal; shorter is better
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]


def test_ties_and_even_odds_have_no_order() -> None:
    groups = [group("a", [2, 3], ranks=[1, 1]), group("b", [2, 3], pairs=[Pair(0, 1, 0.5)])]
    groups.append(group("c", [2, 3], pairs=[Pair(0, 1, 0.2)]))
    found = metrics(groups, [[9.0, 0.0], [9.0, 0.0], [0.0, 1.0]])
    assert found["num_pairs"] == 1
    assert found["accuracy"] == 1  # 0.2 says that the second is better
    assert found["longer_accuracy"] == 1


def test_gold_judges_every_pair_that_it_tells_apart_whatever_the_labels() -> None:
    groups = [group("a", [2, 3, 4], ranks=[1, 1, 2])]
    found = metrics(groups, [[3.0, 2.0, 1.0]], gold=[[0.1, 0.9, 0.1]])
    assert found["num_gold_pairs"] == 2
    assert found["gold_accuracy"] == 0.5
    assert found["gold_longer_accuracy"] == 0.5
    assert found["gold_pearson"] == pytest.approx(0)


def test_what_is_not_determined_is_left_out() -> None:
    found = metrics([group("a", [3, 3], ranks=[1, 1])], [[1.0, 2.0]])
    assert found["num_pairs"] == 0
    assert {"accuracy", "calibration_error", "length_pearson", "accuracy_margin_q1"}.isdisjoint(found)
    assert metrics([], []) == {"num_groups": 0, "num_pairs": 0}
    assert report({}) == [("held-out", "no comparison")]


def test_groups_of_one_prompt_are_one_unit_of_the_interval() -> None:
    ranks, scores = [1, 2], [[1.0, 0.0], [0.0, 1.0]]
    same = [group("a", [2, 2], ranks=ranks), group("a", [2, 2], ranks=ranks)]
    apart = [group("a", [2, 2], ranks=ranks), group("b", [2, 2], ranks=ranks)]
    one, two = metrics(same, scores), metrics(apart, scores)
    assert (one["accuracy_low"], one["accuracy_high"]) == (0.5, 0.5)
    assert (two["accuracy_low"], two["accuracy_high"]) == (0, 1)


def test_the_loss_is_the_training_loss() -> None:
    found = metrics([group("a", [2, 3], ranks=[2, 1])], [[0.5, 0.0]])
    assert found["loss_nats"] == pytest.approx(math.log1p(math.exp(0.5)))


def test_every_figure_of_the_report_is_shown() -> None:
    groups = [group(str(k), [2, 3], ranks=[1, 2]) for k in range(8)]
    found = metrics(groups, [[float(k), 0.5] for k in range(8)], gold=[[1.0, 0.0]] * 8)
    text = "\n".join(f"{name}: {value}" for name, value in report(found))
    assert "pair accuracy: 0.875  95 % [" in text
    assert "gold order" in text
    assert "accuracy by margin, small to large: 0.500  1.000  1.000  1.000" in text


def test_the_table_shows_labels_next_to_normalized_scores(tmp_path: Path) -> None:
    scorer = tmp_path / "gold.py"
    scorer.write_text("def gold(prompts, responses):\n    return [float(r[-1]) for r in responses]\n")
    groups = [group("a", [2, 3], ranks=[1, 2]), group("b", [4, 5], ranks=[2, 1])]
    held_out = HeldOut.prepare(groups, reward_settings(gold=f"{scorer}:gold"), seed=0)
    columns, rows = held_out.table([[3.0, 1.0], [0.0, 5.0]], CARD, num_groups=1)
    assert columns == ["prompt", "completion", "label", "score", "raw_score", "tokens", "gold"]
    assert rows == [["say a", "a0", "rank 1", 1.0, 3.0, 2, 0.0], ["say a", "a1", "rank 2", 0.0, 1.0, 3, 1.0]]

"""Rankings become groups: what is encoded, what is dropped, and that all of it is counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from reward.config import RewardSettings
from reward.data import (
    EQUAL_ANSWERS,
    EQUAL_PAIRS,
    NO_PAIR,
    OPPOSITE_PAIRS,
    Rankings,
    load_rankings,
    micro_batches,
)
from reward.loss import Pair
from reward.train import check_samples
from rlhf.errors import UserError
from rlhf.model.chat import decode_completion
from tests.support.small import small_backbone

ROWS: list[dict[str, Any]] = [
    {"prompt": f"w{i} w2", "completions": [" w5 w6", " w7", " w8 w9 w10"], "ranks": [2, 1, "F"]}
    for i in range(20)
]


def settings(path: Path, **values: Any) -> RewardSettings:
    return RewardSettings.model_validate({"rankings": [{"path": str(path)}], **values})


def load(tmp_path: Path, rows: list[dict[str, Any]], **values: Any) -> Rankings:
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rankings(small_backbone(), settings(path, **values), seed=0, run_folder=tmp_path)


def test_every_completion_is_encoded_once_after_one_prompt(tmp_path: Path) -> None:
    backbone = small_backbone()
    for group in load(tmp_path, ROWS, held_out_fraction=0).train:
        assert len(group) == 3
        assert [sequence[: len(group.prompt_ids)] for sequence in group.sequences] == [group.prompt_ids] * 3
        assert all(ids[-1] == 2 and ids.count(2) == 1 for ids in group.response_ids)
        texts = [decode_completion(backbone.tokenizer, group.prompt_ids, ids) for ids in group.response_ids]
        assert texts == [completion.replace(" ", "") for completion in group.completions]


def test_labels_become_pairs_better_first(tmp_path: Path) -> None:
    group = load(tmp_path, ROWS, held_out_fraction=0).train[0]
    assert sorted(group.pairs) == [Pair(0, 2, 1.0), Pair(1, 0, 1.0), Pair(1, 2, 1.0)]
    assert group.labels == ("rank 2", "rank 1", "rank F")


def test_soft_labels_become_their_probabilities(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "w1", "completions": [" w2", " w3", " w4"], "comparisons": [[0, 1, 0.8], [2, 1, 0.3]]},
        {"prompt": "w2", "chosen": " w2", "rejected": " w3", "probability": 0.9},
    ]
    groups = load(tmp_path, rows, held_out_fraction=0).train
    assert groups[0].pairs == [Pair(0, 1, 0.8), Pair(2, 1, 0.3)]
    assert groups[0].labels == ("wins 0.80", "wins 0.45", "wins 0.30")
    assert groups[1].pairs == [Pair(0, 1, 0.9)]


def test_a_group_without_a_pair_is_counted_and_left_out(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "w9", "completions": [" w1", " w2"], "ranks": [1, 1]}]
    rows += [{"prompt": "w9", "completions": [" w1", " w2"], "ranks": ["F", "F"]}]
    data = load(tmp_path, rows)
    assert data.counts.dropped() == {NO_PAIR: 2}
    assert data.counts.read() == 22
    assert data.counts.used() == len(data.train) + len(data.held_out) == 20
    with_ties = load(tmp_path, rows, tie_margin=0.5)
    assert with_ties.counts.dropped() == {NO_PAIR: 1}


def test_no_prompt_is_on_both_sides(tmp_path: Path) -> None:
    data = load(tmp_path, [*ROWS, *ROWS], held_out_fraction=0.3)
    held_out = {group.key for group in data.held_out}
    assert held_out
    assert held_out.isdisjoint(group.key for group in data.train)


LONG = {"prompt": " ".join(f"w{i}" for i in range(30)), "completions": [" w1 w2", " w3"], "ranks": [1, 2]}


def test_a_group_that_does_not_fit_is_an_error_by_default(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rankings\.jsonl, line 21: prompt \(30\)") as caught:
        load(tmp_path, [*ROWS, LONG], length={"max_tokens": 16})
    assert "`reward.length.max_tokens` (now 16; the model sees 128)" in str(caught.value)
    assert "max_response_tokens" not in str(caught.value)


def test_a_group_that_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    data = load(tmp_path, [*ROWS, LONG], length={"max_tokens": 16, "over_length": "drop"})
    assert data.counts.used() == len(data.train) + len(data.held_out) == 20


def test_truncation_shortens_one_prompt_for_all_completions_and_no_completion(tmp_path: Path) -> None:
    rows = [LONG, ROWS[0]]
    length = {"max_tokens": 16, "over_length": "truncate_left"}
    data = load(tmp_path, rows, length=length, held_out_fraction=0)
    whole = load(tmp_path, rows, held_out_fraction=0)
    group = next(group for group in data.train if group.prompt == LONG["prompt"])
    full = next(group for group in whole.train if group.prompt == LONG["prompt"])
    assert group.max_tokens == 16
    assert group.response_ids == full.response_ids
    assert group.prompt_ids[-5:] == full.prompt_ids[-5:]
    assert data.counts.truncated() == 1
    assert data.counts.used() == 2


def test_normalization_samples_that_fill_the_context_are_refused_before_training(tmp_path: Path) -> None:
    data = load(tmp_path, ROWS)
    full = settings(tmp_path, sampling={"max_response_tokens": 128})
    with pytest.raises(UserError, match=r"^reward\.sampling\.max_response_tokens: .* context is 128 tokens"):
        check_samples(small_backbone(), data, full)
    check_samples(small_backbone(), data, settings(tmp_path, sampling={"max_response_tokens": 100}))


def test_rankings_without_any_pair_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"w{i}", "completions": [" w1", " w2"], "ranks": [1, 1]} for i in range(5)]
    with pytest.raises(UserError, match=r"rankings\.jsonl: all 5 groups are ties") as caught:
        load(tmp_path, rows)
    assert "reward.tie_margin" in str(caught.value)
    failed = [row | {"ranks": ["F", "F"]} for row in rows]
    with pytest.raises(UserError, match="all 5 groups are ties") as caught:
        load(tmp_path, failed, tie_margin=0.0)
    assert "tie_margin" not in str(caught.value)


def test_pairs_that_decide_nothing_are_warned_of_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, ROWS)
    assert capsys.readouterr().err == ""
    pair = {"prompt": "w1", "chosen": " w2", "rejected": " w3", "probability": 0.5}
    data = load(tmp_path, [pair, pair], held_out_fraction=0)
    warned = capsys.readouterr().err
    assert "none of the 2 training pairs says which completion is better" in warned
    assert "there is no held-out pair" in warned
    assert data.pairs() == {"train": 2, "heldout": 0, "train_undecided": 2, "heldout_undecided": 0}


@pytest.mark.parametrize("max_tokens", [1, 40, 100, 10_000])
def test_micro_batches_keep_groups_whole_and_within_the_budget(tmp_path: Path, max_tokens: int) -> None:
    rows = [
        {"prompt": f"w{i}", "completions": [" w1" * (i % 5 + 1), " w2" * (i % 3 + 1)], "ranks": [1, 2]}
        for i in range(17)
    ]
    groups = load(tmp_path, rows, held_out_fraction=0).train
    parts = list(micro_batches(groups, max_tokens))
    assert sorted(group.prompt for part in parts for group in part) == sorted(
        group.prompt for group in groups
    )
    for part in parts:
        tokens = sum(len(group) for group in part) * max(group.max_tokens for group in part)
        assert len(part) == 1 or tokens <= max_tokens


def test_pairs_that_are_equal_for_the_model_are_left_out_and_counted(tmp_path: Path) -> None:
    equal = {"prompt": "w9", "completions": [" w1", "  w1 ", " w2"], "comparisons": [[0, 1, 0.9]]}
    among = {"prompt": "w8", "completions": [" w1", " w2", " w1"], "ranks": [1, 2, 2]}
    data = load(tmp_path, [*ROWS, equal, among], held_out_fraction=0)
    group = data.train[-1]
    assert sorted(group.pairs) == [Pair(0, 1, 1.0)]
    assert data.counts.dropped() == {EQUAL_ANSWERS: 1}
    assert data.counts.noted() == {EQUAL_PAIRS: 1}
    assert data.counts.to_json()["total"]["noted"] == {EQUAL_PAIRS: 1}
    assert all(
        group.response_ids[a] != group.response_ids[b] for group in data.train for a, b, _, _ in group.pairs
    )


def test_pairs_of_equal_answers_that_contradict_are_left_out_and_counted(tmp_path: Path) -> None:
    """Of A > B > A, neither is learned from; C below both still is."""
    circle = {"prompt": "w8", "completions": [" w1", " w2", " w1"], "ranks": [1, 2, 3]}
    more = {"prompt": "w9", "completions": [" w1", " w2", " w1", " w3"], "ranks": [1, 2, 3, 4]}
    data = load(tmp_path, [*ROWS, circle, more], held_out_fraction=0)
    assert data.counts.dropped() == {OPPOSITE_PAIRS: 1}
    assert data.counts.noted() == {EQUAL_PAIRS: 1, OPPOSITE_PAIRS: 2}
    assert sorted(data.train[-1].pairs) == [Pair(0, 3, 1.0), Pair(1, 3, 1.0), Pair(2, 3, 1.0)]

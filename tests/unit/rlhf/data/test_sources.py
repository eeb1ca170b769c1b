from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.counts import RecordCounts
from rlhf.data.records import Demonstration, Prompt, Ranking
from rlhf.data.sources import read_prompts, source_fingerprints, split_by_prompt
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings
from tests.unit.rlhf.data.rows import (
    ASSISTANT,
    DEMONSTRATION,
    GOOD,
    PROMPT,
    RANKING,
    REPOSITORY,
    TALK,
    TALK_MESSAGES,
    Read,
    error_of,
    jsonl,
    message,
    read_with_counts,
)

# Where the data is


def test_the_run_folder_is_put_into_paths(tmp_path: Path) -> None:
    jsonl(tmp_path, {"prompt": "a"})
    source = SourceSettings(path="{run}/data.jsonl")
    records, counts = read_prompts([source], seed=0, run_folder=tmp_path)
    assert len(records) == 1
    assert [*counts.to_json()["sources"]] == ["{run}/data.jsonl"]


def test_a_fingerprint_is_the_hash_of_the_file_or_the_revision_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"abc")
    paths = ["{run}/data.jsonl", "owner/name", "owner/pinned"]
    sources = [SourceSettings(path=path, revision="v1" if "pinned" in path else None) for path in paths]
    assert source_fingerprints("prompts", sources, run_folder=tmp_path) == {
        "prompts.0": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "prompts.1": "hub:owner/name@main",
        "prompts.2": "hub:owner/pinned@v1",
    }


def test_moved_data_are_the_same_data(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}"} for number in range(40)]
    prints, prompts = [], []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        path = jsonl(tmp_path / folder, *rows)
        sources = [SourceSettings(path=path, weight=weight) for weight in (1.0, 3.0)]
        prints.append(source_fingerprints("prompts", sources, run_folder=tmp_path))
        prompts.append([record.prompt for record in read_prompts(sources, seed=1, run_folder=tmp_path)[0]])
    assert prints[0] == prints[1]
    assert prompts[0] == prompts[1]


# What is dropped, and the counts


@pytest.mark.parametrize(
    ("read", "row", "reason"),
    [
        (PROMPT, {"prompt": " \n"}, "empty prompt"),
        (PROMPT, {"question": ""}, "empty prompt"),
        (PROMPT, {"messages": [message("assistant", "Hi")]}, "empty prompt"),
        (DEMONSTRATION, {"prompt": "p", "completion": " "}, "empty completion"),
        (DEMONSTRATION, {"transcript": TALK}, "transcript ends with a human turn"),
        (DEMONSTRATION, {"messages": [message("assistant", "Hi")]}, "empty prompt"),
        (RANKING, {"prompt": "p", "chosen": "a", "rejected": ""}, "empty completion"),
        (RANKING, {"prompt": "p", "chosen": "a", "rejected": "a"}, "completions identical"),
        (
            RANKING,
            {"prompt": "p", "completions": ["a", "a", "a"], "ranks": [1, 2, 3]},
            "completions identical",
        ),
        (
            RANKING,
            {"chosen": f"{TALK}{ASSISTANT} La.", "rejected": f"{TALK}!{ASSISTANT} No."},
            "prompts differ",
        ),
        (
            RANKING,
            {
                "chosen": [*TALK_MESSAGES, message("assistant", "La")],
                "rejected": [*TALK_MESSAGES[:1], message("assistant", "No")],
            },
            "prompts differ",
        ),
    ],
)
@pytest.mark.parametrize("transcripts", ["text", "messages"])
def test_a_row_of_no_use_is_counted_under_its_reason(
    tmp_path: Path, read: Read, row: dict[str, Any], reason: str, transcripts: str
) -> None:
    good = {**GOOD, "completion": "c"}
    path = jsonl(tmp_path, good, row)
    records, counts = read_with_counts(read, path, transcripts=transcripts)
    assert len(records) == 1
    expected = {"read": 2, "used": 1, "dropped": {reason: 1}, "truncated": 0}
    assert counts.to_json() == {"sources": {path: expected}, "steps": {}, "total": expected}
    assert f"`{reason}`" in (REPOSITORY / "docs/data-formats.md").read_text()


def test_a_source_without_a_usable_record_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": ""}, {"prompt": " "})
    assert f"{path}: none of its 2 records can be used (empty prompt: 2)" in error_of(PROMPT, path)


def test_records_beyond_the_limit_are_counted_and_not_looked_at(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b"}, "malformed", "malformed")
    records, counts = read_with_counts(PROMPT, path, limit=2)
    assert [record.prompt for record in records] == ["a", "b"]
    assert (counts.read(), counts.used(), counts.dropped()) == (4, 2, {"beyond the limit": 2})


def test_duplicates_stay(tmp_path: Path) -> None:
    assert len(read_with_counts(PROMPT, jsonl(tmp_path, *[{"prompt": "a"}] * 3))[0]) == 3


# Mixtures


def mixture(
    folder: Path, seed: int, *sizes_and_weights: tuple[int, float | None]
) -> tuple[list[str], RecordCounts]:
    sources = []
    for number, (size, weight) in enumerate(sizes_and_weights):
        path = jsonl(folder, *({"prompt": f"{number}-{i}"} for i in range(size)), name=f"{number}.jsonl")
        sources.append(SourceSettings(path=path, weight=weight))
    records, counts = read_prompts(sources, seed=seed, run_folder=folder)
    return [str(record.prompt) for record in records], counts


def test_without_weights_everything_is_used_in_order(tmp_path: Path) -> None:
    assert mixture(tmp_path, 0, (2, None), (1, None))[0] == ["0-0", "0-1", "1-0"]


def test_weights_are_proportions_of_the_largest_mixture_that_repeats_nothing(tmp_path: Path) -> None:
    prompts, counts = mixture(tmp_path, 0, (30, 3), (100, 1))
    assert sum(prompt.startswith("0-") for prompt in prompts) == 30
    assert sum(prompt.startswith("1-") for prompt in prompts) == 10
    assert counts.dropped() == {"left out by weights": 90}


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 10)), min_size=1, max_size=4), st.integers(0, 5))
def test_a_mixture_repeats_nothing_and_keeps_its_shares(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, float]], seed: int
) -> None:
    prompts, counts = mixture(tmp_path_factory.mktemp("mix"), seed, *parts)
    assert len(set(prompts)) == len(prompts) == counts.used()
    takes = [sum(prompt.startswith(f"{number}-") for prompt in prompts) for number in range(len(parts))]
    assert any(take == size for take, (size, _) in zip(takes, parts, strict=True))
    scale = min(size / weight for size, weight in parts)
    assert all(
        abs(take - scale * weight) <= 0.5 + 1e-9 for take, (_, weight) in zip(takes, parts, strict=True)
    )


def test_the_seed_chooses_what_a_mixture_leaves_out(tmp_path: Path) -> None:
    parts = ((5, 1.0), (100, 1.0))
    assert mixture(tmp_path, 1, *parts)[0] == mixture(tmp_path, 1, *parts)[0]
    assert mixture(tmp_path, 1, *parts)[0] != mixture(tmp_path, 2, *parts)[0]


def test_a_weight_for_one_source_only_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weight, and others have one"):
        mixture(tmp_path, 0, (2, 1.0), (2, None))


def test_no_source_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="no source of data"):
        read_prompts([], seed=0, run_folder=Path("runs/r"))


# Splits

RECORDS = st.lists(
    st.builds(Demonstration, prompt=st.sampled_from("abcdefgh"), completion=st.sampled_from("xyz")),
    max_size=20,
)
FRACTIONS = st.floats(0.01, 0.99)


@given(RECORDS, FRACTIONS, st.integers(0, 99))
def test_a_split_loses_nothing_and_has_no_prompt_on_both_sides(
    records: list[Demonstration], fraction: float, seed: int
) -> None:
    train, held_out = split_by_prompt(records, fraction=fraction, seed=seed)
    assert sorted(map(repr, train + held_out)) == sorted(map(repr, records))
    prompts = {record.prompt for record in train}, {record.prompt for record in held_out}
    assert not prompts[0] & prompts[1]
    if len(prompts[0] | prompts[1]) >= 2:
        assert train
        assert held_out


@given(RECORDS, FRACTIONS, st.integers(0, 99), st.randoms())
def test_order_never_changes_a_side(
    records: list[Demonstration], fraction: float, seed: int, random: Any
) -> None:
    before = {r.prompt for r in split_by_prompt(records, fraction=fraction, seed=seed)[1]}
    random.shuffle(records)
    assert {r.prompt for r in split_by_prompt(records, fraction=fraction, seed=seed)[1]} == before


def test_a_prompt_is_on_the_same_side_in_every_kind_and_every_company() -> None:
    prompts = [str(number) for number in range(1000)]
    sides = split_by_prompt([Prompt(prompt=p) for p in prompts], fraction=0.2, seed=3)
    some = split_by_prompt(
        [Ranking(prompt=p, completions=("a", "b"), ranks=(1, 2)) for p in prompts[::2]], fraction=0.2, seed=3
    )
    held_out = {record.prompt for record in sides[1]}
    assert {record.prompt for record in some[1]} == held_out & set(prompts[::2])
    assert 160 < len(held_out) < 240
    assert held_out <= {r.prompt for r in split_by_prompt(sides[0] + sides[1], fraction=0.4, seed=3)[1]}
    assert held_out != {r.prompt for r in split_by_prompt(sides[0] + sides[1], fraction=0.2, seed=4)[1]}


def test_without_a_fraction_or_a_second_prompt_nothing_is_held_out() -> None:
    records = [Prompt(prompt="a"), Prompt(prompt="b")]
    assert split_by_prompt(records, fraction=0.0, seed=0) == (records, [])
    assert [len(side) for side in split_by_prompt(records[:1] * 3, fraction=1e-9, seed=0)] == [3, 0]

import json
import re
from pathlib import Path

import pytest

from rlhf.data.records import Demonstration
from tests.unit.rlhf.data.rows import (
    DEMONSTRATION,
    PROMPT,
    RANKING,
    REPOSITORY,
    Read,
    read_one,
    read_with_counts,
)

HH = REPOSITORY.parent / "shared/data/hh-harmless/pairs.jsonl"
GSM8K = REPOSITORY.parent / "shared/data/gsm8k/demonstrations.jsonl"
needs_hh = pytest.mark.skipif(not HH.is_file(), reason="the HH-RLHF file is not next to the repository")
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_file(), reason="the GSM8K file is not next to the repository")


@needs_hh
@pytest.mark.parametrize("transcripts", ["text", "messages"])
def test_every_pair_of_hh_is_accounted_for(transcripts: str) -> None:
    records, counts = read_with_counts(RANKING, str(HH), transcripts=transcripts)
    expected = {"empty completion": 3, "prompts differ": 3}
    assert (counts.read(), len(records), counts.used(), counts.dropped()) == (1653, 1647, 1647, expected)
    for record in records:
        assert record.ranks == (1, 2)
        assert all(completion.strip() for completion in record.completions)
        if transcripts == "messages":
            assert [turn.role for turn in record.prompt][-1] == "user"


@needs_hh
def test_prompt_and_completions_of_hh_read_as_its_transcripts_do() -> None:
    rows = [json.loads(line) for line in HH.read_text(encoding="utf-8").splitlines()]
    known = {
        re.sub(r"Assistant: +", "Assistant: ", row[side]).rstrip()
        for row in rows
        for side in ("chosen", "rejected")
    }
    for record in read_with_counts(RANKING, str(HH))[0]:
        for completion in record.completions:
            assert re.sub(r"Assistant: +", "Assistant: ", record.prompt + completion) in known


@needs_hh
def test_hh_serves_all_three_stages_with_the_same_prompts() -> None:
    columns = {"transcript": "chosen"}
    demonstrations, counts = read_with_counts(DEMONSTRATION, str(HH), columns=columns)
    prompts, _ = read_with_counts(PROMPT, str(HH), columns=columns)
    rankings, _ = read_with_counts(RANKING, str(HH))
    assert (len(demonstrations), counts.dropped(), len(prompts)) == (1650, {"empty completion": 3}, 1653)
    assert {r.prompt for r in rankings} <= {d.prompt for d in demonstrations} <= {p.prompt for p in prompts}


@needs_gsm8k
def test_gsm8k_is_read_without_a_word_of_configuration() -> None:
    records, counts = read_with_counts(DEMONSTRATION, str(GSM8K))
    first = json.loads(GSM8K.read_text(encoding="utf-8").split("\n")[0])
    assert records[0] == Demonstration(prompt=first["question"] + "\n\n", completion=first["answer"])
    assert (counts.read(), counts.used()) == (1319, 1319)


def test_the_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    table = (REPOSITORY / "docs/data-formats.md").read_text(encoding="utf-8")
    examples = re.findall(r"^\| (\w+) \| .* \| `(\{.*\})` \|$", table, re.MULTILINE)
    readers: dict[str, Read] = {"demonstration": DEMONSTRATION, "ranking": RANKING, "prompt": PROMPT}
    assert {kind for kind, _ in examples} == set(readers)
    for kind, example in examples:
        read_one(readers[kind], tmp_path, json.loads(example))

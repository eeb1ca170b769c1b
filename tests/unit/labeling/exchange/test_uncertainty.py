"""Files of scores: the command that is advised where one is missing, and how unsure scores are."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from labeling.__main__ import main
from labeling.exchange.uncertainty import uncertainty
from reward.__main__ import main as reward_main
from rlhf.errors import UserError


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("items", "scores", "advised"),
    [("my items.jsonl", "of others.jsonl", "my items.jsonl"), ("my items.jsonl", "none.jsonl", "ITEMS")],
)
def test_the_advised_command_is_one_that_the_reward_stage_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: str, scores: str, advised: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("my items.jsonl"), {"prompt": "q", "completions": ["a", "b"]})
    write(Path("of others.jsonl"), {"prompt": "p", "completions": ["a", "b"], "raw_score": [0.1, 0.2]})
    with pytest.raises(UserError) as caught:
        main(["create", "--project", "p", "--items", items, "--scores", scores])
    command = re.search(r"python -m reward (.+)", caught.value.fix or "")
    assert command is not None
    paths: list[Path] = []

    def score_file(model: Path, source: Path, target: Path, options: object) -> None:
        paths.extend((model, source, target))

    monkeypatch.setattr("reward.score.score_file", score_file)
    assert reward_main(shlex.split(command.group(1))) == 0
    assert paths == [Path("runs/RUN/reward/model"), Path(advised), Path("SCORES")]


def test_equal_scores_say_nothing_and_far_ones_everything() -> None:
    assert uncertainty([1.0, 1.0]) == 1.0
    assert uncertainty([0.0, 50.0]) < 1e-12
    probability = 1 / (1 + math.exp(-2.0))
    entropy = -sum(p * math.log2(p) for p in (probability, 1 - probability))
    assert uncertainty([3.0, 1.0]) == pytest.approx(entropy)

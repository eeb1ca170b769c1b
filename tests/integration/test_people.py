"""From a model's samples to a reward model that learned from labels: sample, rank, agree, export, train."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import reward.__main__
import sft.__main__
from labeling.__main__ import main
from labeling.store.project import Project
from rlhf.commands.process import run_command
from rlhf.runs.stage import require
from tests.support.terminals import terminal

pytestmark = pytest.mark.slow

NUM_PROMPTS = 6


@pytest.fixture(scope="module")
def home(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and the finished SFT stage of its run."""
    folder = tmp_path_factory.mktemp("people")
    recipe: dict[str, Any] = yaml.safe_load((root / "tests/integration/micro.yaml").read_text())
    recipe["run"]["folder"] = str(folder / "runs")
    recipe["tracking"]["wandb"] = "off"
    recipe["reward"]["num_epochs"] = 2
    recipe["labeling"] = {
        "samples": {
            "prompts": [{"path": "configs/tiny/data/prompts.jsonl", "limit": NUM_PROMPTS}],
            "completions_per_prompt": 3,
            "sampling": {"max_response_tokens": 16},
        }
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run_command(sft.__main__.main, ["--config", str(folder / "recipe.yaml")]) == 0
    return folder


def test_the_whole_way(
    home: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    project, recipe = str(home / "project"), str(home / "recipe.yaml")
    create = ["create", "--project", project, "--config", recipe, "--overlap", "3"]
    assert main([*create, "--temperature", "0.5", "--temperature", "1.5"]) == 0
    scorer = f"{root / 'configs/tiny/gold.py'}:score"
    for name, error_rate in (("bo", "0.0"), ("cy", "0.2")):
        options = ["--labeler", name, "--scorer", scorer, "--error-rate", error_rate]
        assert main(["simulate", "--project", project, *options]) == 0
    with terminal("rank", "--project", project, "--labeler", "ann") as screen:
        for done in range(NUM_PROMPTS):
            screen.until_shown(f"· {done} done")
            screen.press("1", "2", "f")
            screen.until_shown("All ranked")
            screen.press("Enter")
        screen.until_shown("Nothing is left for you")
        screen.press("q")
        screen.until_shown("status=0")
    capsys.readouterr()
    assert main(["status", "--project", project, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["items_done"] == status["items"] == NUM_PROMPTS
    assert [labeler["submitted"] for labeler in status["labelers"]] == [NUM_PROMPTS] * 3
    assert status["agreement"]["krippendorff_nominal"] is not None
    assert len(status["strengths"]) == 2
    assert main(["export", "--project", project, "--to", str(home / "labels")]) == 0
    manifest = str(home / "labels" / "manifest.json")
    learn = ["--config", recipe, f"reward.rankings=[{{path: {manifest}}}]"]
    assert run_command(reward.__main__.main, learn) == 0
    finished = require(home / "runs" / "micro", "reward")
    assert finished.accounts["rankings"]["total"]["read"] == NUM_PROMPTS


def test_who_wrote_what_is_on_record_and_not_on_the_screen(
    home: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    model = require(home / "runs" / "micro", "sft").path()
    other = home / "other"
    if not other.exists():
        os.symlink(model, other)
    project = str(home / "two")
    create = ["create", "--project", project, "--config", str(home / "recipe.yaml")]
    assert main([*create, "--model", str(model), "--model", str(other)]) == 0
    with Project.open(project) as opened:
        items = opened.items("item")
    assert {item.models for item in items} == {("model", "model", "other")}
    assert all(len(set(item.completions)) > 1 for item in items[:5])
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("quit\n"))
    assert main(["rank", "--project", project, "--labeler", "ann", "--plain"]) == 0
    assert "other" not in capsys.readouterr().out

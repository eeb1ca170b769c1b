"""From a pretrained model to rankings that the reward stage reads: demonstrations, SFT, samples, rankings."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import labeling.__main__
import sft.__main__
from labeling.store.items import read_items
from rlhf.commands.process import run_command
from rlhf.data.sources import read_demonstrations, read_rankings
from rlhf.runs.stage import require
from rlhf.settings.groups import SourceSettings
from tests.support.small import SPECIALS, write_small_model

pytestmark = pytest.mark.slow

WORDS = ["▁The", "▁cat", "▁dog", "▁sat.", "▁ran.", "▁slept!", "▁and", "▁then"]
SCORER = "def cats(prompts, responses):\n    return [float(r.count('cat')) for r in responses]\n"
COMMANDS = ("demonstrations", "sft", "samples", "rankings")


def write_model(folder: Path) -> None:
    """A random model whose every third word ends a sentence."""
    write_small_model(folder, num_words=len(WORDS))
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def write_recipe(folder: Path) -> Path:
    (folder / "gold.py").write_text(SCORER)
    prompts = [
        " ".join(("The", a, b, c)) for a in ("cat", "dog") for b in ("and", "then") for c in ("cat", "dog")
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    sources = [{"path": str(folder / "prompts.jsonl")}]
    sampling = {"max_response_tokens": 24}
    values: dict[str, Any] = {
        "run": {"folder": str(folder / "runs"), "name": "r", "device": "cpu"},
        "tracking": {"wandb": "off"},
        "model": {"path": str(folder / "model")},
        "labeling": {
            "demonstrations": {"prompts": sources, "sentences": 2, "sampling": sampling},
            "samples": {"prompts": sources, "completions_per_prompt": 3, "sampling": sampling},
            "rankings": {"scorer": f"{folder / 'gold.py'}:cats", "error_rate": 0.1},
        },
        "sft": {
            "method": "none",
            "demonstrations": [{"path": "{run}/demonstrations/demonstrations.jsonl"}],
            "num_samples": 0,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(command: str, folder: Path, *arguments: str) -> int:
    options = ["--config", str(folder / "recipe.yaml"), *arguments]
    if command == "sft":
        return run_command(sft.__main__.main, options)
    return run_command(labeling.__main__.main, [command, *options])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe and its finished run `r`."""
    folder = tmp_path_factory.mktemp("labeling")
    write_model(folder / "model")
    write_recipe(folder)
    for command in COMMANDS:
        assert start(command, folder) == 0
    return folder


@pytest.fixture
def own(home: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    return tmp_path


def test_every_command_leaves_a_manifest_and_its_file(home: Path) -> None:
    for command in ("demonstrations", "samples", "rankings"):
        manifest = require(home / "runs" / "r", command)
        assert list(manifest.outputs) == [f"{command}/{command}.jsonl"]
        assert all(isinstance(value, int | float) for value in manifest.metrics.values())


def test_demonstrations_end_after_the_sentences_asked_for(home: Path) -> None:
    source = SourceSettings(path="{run}/demonstrations/demonstrations.jsonl")
    records, _ = read_demonstrations([source], seed=0, run_folder=home / "runs" / "r")
    assert records
    for record in records:
        assert sum(record.completion.count(end) for end in (".", "!")) == 2
        assert record.completion[-1] in ".!"
    counts = require(home / "runs" / "r", "demonstrations").accounts["prompts"]["total"]
    assert counts["read"] == 8
    assert counts["used"] == len(records)


def test_samples_name_their_model_and_rankings_keep_them_all(home: Path) -> None:
    run = home / "runs" / "r"
    items = read_items(run / "samples" / "samples.jsonl")
    assert len(items) == 8
    assert {item.model for item in items} == {require(run, "sft").artifact_sha256}
    assert all(len(item.completions) == len(item.ended or ()) == 3 for item in items)
    source = SourceSettings(path="{run}/rankings/rankings.jsonl")
    rankings, counts = read_rankings([source], seed=0, run_folder=run)
    assert counts.read() == 8
    kept = {(ranking.prompt, ranking.completions) for ranking in rankings}
    assert kept <= {(item.prompt, item.completions) for item in items}
    assert {ranking.annotator for ranking in rankings} == {f"scripted:{home / 'gold.py'}:cats"}


def test_running_again_is_up_to_date_without_loading_torch(home: Path, root: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module('labeling', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    for command in ("demonstrations", "samples", "rankings"):
        done = subprocess.run(
            [sys.executable, "-c", code, "labeling", command, "--config", str(home / "recipe.yaml")],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "up to date" in done.stdout


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(home: Path) -> None:
    for name, seed in (("same", "0"), ("other", "1")):
        for command in COMMANDS:
            assert start(command, home, f"run.name={name}", f"run.seed={seed}") == 0
    for command in ("demonstrations", "samples", "rankings"):
        first, same, other = (
            (home / "runs" / name / command / f"{command}.jsonl").read_bytes()
            for name in ("r", "same", "other")
        )
        assert first == same
        assert first != other


def test_another_preference_concerns_the_rankings_alone(
    home: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = (f"run.folder={own / 'runs'}", "labeling.rankings.prefer=lower")
    assert start("demonstrations", home, *change) == start("samples", home, *change) == 0
    assert start("rankings", home, *change) == 2
    assert "labeling.rankings.prefer" in capsys.readouterr().err
    assert start("rankings", home, *change, "--clean") == 0


def test_another_scorer_file_makes_the_rankings_stale(
    home: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "gold.py").write_text(SCORER)
    change = (f"run.folder={own / 'runs'}", f"labeling.rankings.scorer={own / 'gold.py'}:cats")
    assert start("rankings", home, *change, "--clean") == 0
    (own / "gold.py").write_text(SCORER.replace("cat'", "dog'"))
    assert start("rankings", home, *change) == 2
    assert "has changed" in capsys.readouterr().err


def test_continuations_that_are_all_too_short_leave_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = (f"run.folder={tmp_path}", "labeling.demonstrations.sentences=50")
    assert start("demonstrations", home, *change) == 2
    assert "no continuation has 50 sentences" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not list(tmp_path.rglob("manifest.json"))

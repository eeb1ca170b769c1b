"""The reward stage, from rankings to an adapter: run, interrupted, moved, and opened without our code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml

from reward.__main__ import main
from reward.config import RewardSettings
from reward.data import load_rankings
from reward.model import base_identity, load_reward
from reward.train import reference_scores
from reward.trainer import Trainer
from rlhf.commands.process import run_command
from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.batching import TokenBatch
from rlhf.model.chat import encode_completion, encode_prompt
from rlhf.runs.metrics import read_metrics
from rlhf.runs.stage import require
from rlhf.sampling.engine import sample
from rlhf.settings.recipe import load_recipe
from sft.__main__ import main as sft_main
from tests.support.glossary import assert_documented

pytestmark = pytest.mark.slow

GOLD = "def gold(prompts, responses):\n    return [float('please' in text) for text in responses]\n"
OPEN = """
import importlib.abc, json, os, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("rlhf", "sft", "reward", "ppo", "labeling"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

scores = []
for folder in sys.argv[1:]:
    os.chdir(folder)
    tokenizer = AutoTokenizer.from_pretrained("reward/model")
    model = AutoPeftModelForSequenceClassification.from_pretrained("reward/model", num_labels=1)
    rows = json.load(open("rows.json"))
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        scores.append(model(**batch).logits.squeeze(-1).tolist())
print(json.dumps(scores))
"""


def rankings() -> list[dict[str, Any]]:
    rows = []
    for i in range(60):
        good, better = f" Turn it {'left' if i % 2 else 'right'}.", f" Turn it {i} times, please."
        rows.append(
            {
                "prompt": f"How do I mend lamp {i}?",
                "completions": [good, better, " No."],
                "ranks": [2, 1, "F"],
            }
        )
    return rows


def write_recipe(folder: Path, *, model: dict[str, Any] | None = None, **reward: Any) -> Path:
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rankings()))
    (folder / "gold.py").write_text(GOLD)
    scratch = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "vocab_size": 320}
    values = {
        "run": {"folder": str(folder / "runs"), "name": "r", "device": "cpu"},
        "tracking": {"wandb": "off", "log_every_steps": 2},
        "model": model or {"scratch": scratch | {"max_length": 96}},
        "sft": {"method": "none", "tokenizer_prompts": [{"path": str(folder / "rankings.jsonl")}]},
        "reward": {
            "rankings": [{"path": str(folder / "rankings.jsonl")}],
            "gold": f"{folder / 'gold.py'}:gold",
            "held_out_fraction": 0.2,
            "lora": {"rank": 4, "alpha": 8},
            "num_epochs": 2,
            "batch_size": 8,
            "learning_rate": 0.01,
            "head_learning_rate": 0.01,
            "num_normalization_samples": 40,
            "sampling": {"max_response_tokens": 12},
            "eval_every_steps": 5,
            "checkpoint_every_steps": 3,
            **reward,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def publish_sft(config: Path, *overrides: str) -> Path:
    """The SFT stage, with a model that it takes as it is; returns the run folder."""
    assert sft_main(["--config", str(config), *overrides]) == 0
    return load_recipe(config, overrides).run_folder


def run(config: Path, *overrides: str) -> int:
    return main(["--config", str(config), *overrides])


def our_scores(run_folder: Path) -> tuple[list[list[int]], list[float]]:
    """Rows of varied length and our raw scores of them."""
    backbone = Backbone.load(run_folder / "sft" / "model")
    identity = base_identity(require(run_folder, "sft"))
    model = load_reward(backbone, run_folder / "reward" / "model", expected_base_sha256=identity)
    rows = []
    for record in rankings()[:6]:
        prompt_ids = encode_prompt(backbone.tokenizer, record["prompt"])
        for completion in record["completions"]:
            rows.append(prompt_ids + encode_completion(backbone.tokenizer, record["prompt"], completion))
    rows.append(rows[0][:-4])  # a response that did not end
    with torch.no_grad():
        return rows, model.raw(TokenBatch.of(rows, backbone.pad_id, "cpu")).tolist()


def plain_scores(run_folders: list[Path], rows: list[list[list[int]]]) -> list[list[float]]:
    """The same by transformers and peft alone, in a process that stands in each run folder in turn."""
    for folder, own in zip(run_folders, rows, strict=True):
        (folder / "rows.json").write_text(json.dumps(own))
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *map(str, run_folders)],
        cwd=run_folders[0],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    scores: list[list[float]] = json.loads(done.stdout)
    return scores


def test_the_published_adapter_opens_without_our_code_after_a_move_whichever_token_pads(
    tmp_path: Path,
) -> None:
    config = write_recipe(tmp_path)
    found, moved, metrics = [], [], []
    for pad_token in ("own", "eos", "unk"):
        overrides = [f"model.scratch.pad_token={pad_token}", f"run.name={pad_token}"]
        run_folder = publish_sft(config, *overrides)
        assert run(config, *overrides) == 0
        metrics.append(read_metrics(run_folder / "reward" / "metrics.jsonl"))
        found.append(our_scores(run_folder))
        moved.append(tmp_path / "archive" / pad_token / "old-run")
        moved[-1].parent.mkdir(parents=True)
        shutil.move(run_folder, moved[-1])
    assert metrics[0] == metrics[1] == metrics[2]
    assert found[0] == found[1] == found[2]
    for scores in plain_scores(moved, [rows for rows, _ in found]):
        assert scores == pytest.approx(found[0][1], abs=1e-5)


def test_a_base_whose_embedding_is_stored_under_the_output_head_alone(tmp_path: Path, shared: Path) -> None:
    model = {"path": str(shared / "models" / "tinystories-656k")}
    config = write_recipe(tmp_path, model=model, num_epochs=1, held_out_fraction=0.5)
    run_folder = publish_sft(config)
    assert run(config) == 0
    rows, ours = our_scores(run_folder)
    assert plain_scores([run_folder], [rows])[0] == pytest.approx(ours, abs=1e-5)


def test_a_run_learns_says_so_and_is_then_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_recipe(tmp_path, num_epochs=6)
    run_folder = publish_sft(config)
    assert run(config) == 0
    shown = capsys.readouterr().out
    assert "pair accuracy" in shown
    assert "make ppo" in shown
    assert_documented(run_folder / "reward" / "metrics.jsonl")
    manifest = require(run_folder, "reward")
    assert manifest.metrics["heldout_accuracy"] > 0.9
    assert manifest.metrics["heldout_gold_accuracy"] > 0.9
    assert manifest.accounts["rankings"]["total"]["used"] == 60
    assert manifest.accounts["normalization"]["samples"] == 40
    assert manifest.inputs["sft/model"] == require(run_folder, "sft").artifact_sha256
    table = next((run_folder / "reward" / "samples").glob("reward.heldout-*.jsonl")).read_text().splitlines()
    assert {"prompt", "completion", "label", "score", "gold"} <= set(json.loads(table[0]))
    stamp = (run_folder / "reward" / "manifest.json").stat().st_mtime_ns
    assert run(config) == 0
    assert "up to date" in capsys.readouterr().out
    assert (run_folder / "reward" / "manifest.json").stat().st_mtime_ns == stamp


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_recipe(tmp_path)
    straight = publish_sft(config, "run.name=straight")
    assert run(config, "run.name=straight") == 0
    broken = publish_sft(config, "run.name=broken")
    step = Trainer.step

    def die(trainer: Trainer) -> None:
        if trainer.next_step == 8:
            raise KeyboardInterrupt
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", die)
        assert run_command(main, ["--config", str(config), "run.name=broken"]) == 130
    assert not (broken / "reward" / "manifest.json").exists()
    assert not (broken / "reward" / "model").exists()
    assert run(config, "run.name=broken") == 0
    for name in ("model/adapter_model.safetensors", "model/reward.json", "metrics.jsonl"):
        assert (broken / "reward" / name).read_bytes() == (straight / "reward" / name).read_bytes(), name


def test_the_sft_models_own_samples_have_mean_0_and_variance_1(tmp_path: Path) -> None:
    config = write_recipe(tmp_path)
    run_folder = publish_sft(config)
    assert run(config) == 0
    recipe = load_recipe(config)
    settings = cast(RewardSettings, recipe.section("reward"))
    backbone = Backbone.load(run_folder / "sft" / "model")
    identity = base_identity(require(run_folder, "sft"))
    model = load_reward(backbone, run_folder / "reward" / "model", expected_base_sha256=identity)
    data = load_rankings(backbone, settings, seed=recipe.run.seed, run_folder=run_folder)
    measured, counts = reference_scores(backbone, data, settings, seed=recipe.run.seed)
    samples = measured.scores_S
    normalized = (samples - model.mean) / model.std
    assert counts["samples"] == len(samples) == 40
    assert float(normalized.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normalized.std(correction=0)) == pytest.approx(1, abs=1e-5)
    prompts = [group.prompt_ids for group in data.train] * 5
    keys = [(0, row, 0) for row in range(len(prompts))]
    rollouts = sample(
        backbone, prompts, role=REFERENCE, settings=settings.sampling, keys=keys, seed=1
    )  # others than those that set the scale: their mean is 0 up to its standard error
    with torch.no_grad():
        scores = model.normalized(model.raw(rollouts.batch().tokens))
    errors = [float(found.std()) / len(found) ** 0.5 for found in (scores, normalized)]
    assert abs(float(scores.mean())) < 4 * sum(errors)


def test_without_an_sft_model_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make sft"):
        run(write_recipe(tmp_path))


def test_other_settings_are_not_mixed_into_a_finished_stage(tmp_path: Path) -> None:
    config = write_recipe(tmp_path, num_epochs=1)
    publish_sft(config)
    assert run(config) == 0
    with pytest.raises(UserError, match=r"learning_rate[\s\S]*run\.name[\s\S]*--clean"):
        run(config, "reward.learning_rate=0.02")
    assert run(config, "reward.micro_batch_tokens=64") == 0  # cannot change a result: still up to date
    assert run(config, "reward.learning_rate=0.02", "--clean") == 0
    rankings = tmp_path / "rankings.jsonl"
    good = rankings.read_text()
    rankings.write_text(good + "{}\n")
    with pytest.raises(UserError, match="line 61"):
        run(config, "reward.learning_rate=0.02", "--clean")
    rankings.write_text(good)
    assert run(config, "reward.learning_rate=0.02") == 0  # the finished result is still there


def test_a_bad_record_is_an_error_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_recipe(tmp_path)
    run_folder = publish_sft(config)
    with (tmp_path / "rankings.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completions": ["a", "b"]}\n')
    assert run_command(main, ["--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "line 61" in error
    assert "Traceback" not in error
    assert not (run_folder / "reward" / "model").exists()
    assert not (run_folder / "reward" / "manifest.json").exists()

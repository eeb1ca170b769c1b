"""What comes after training costs no training: merging is a step of its own, and can be repeated."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo.train import PPO
from rlhf.model.backbone import Backbone
from rlhf.runs.files import sha256_file, tree_hash
from rlhf.runs.stage import require
from tests.integration.micro import copy_stages, start

WEIGHTS = "ppo/model/adapter_model.safetensors"
MERGED = "merged/model.safetensors"


@pytest.fixture
def unmerged(runs: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the finished run, as if it had not been merged."""
    run = tmp_path / "micro"
    copy_stages(runs / "micro", run, ("sft", "reward", "ppo"))
    shutil.rmtree(run / "ppo" / "merged")
    (run / "ppo" / "merged.json").unlink()
    return tmp_path


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: PPO, *arguments: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(PPO, "__init__", refused)


@pytest.mark.parametrize("failure", [RuntimeError, AttributeError, OSError, MemoryError])
def test_a_merge_that_fails_costs_nothing_and_the_same_command_repeats_it_alone(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: type[Exception],
) -> None:
    copy_stages(runs / "micro", tmp_path / "micro")
    changes = ("ppo.export_merged=true", "ppo.num_iterations=1", "ppo.evaluation.best_of=[]")
    with monkeypatch.context() as patch:

        def broken(backbone: Backbone, folder: Path) -> None:
            (folder / "half").write_text("written")
            raise failure("this architecture has no such weight")

        patch.setattr(Backbone, "save", broken)
        assert start("ppo", tmp_path, *changes) == 0
    said = capsys.readouterr().err
    assert "the policy is published" in said
    assert "no such weight" in said
    assert "make ppo CONFIG=" in said
    folder = tmp_path / "micro" / "ppo"
    assert require(tmp_path / "micro", "ppo").metrics["after_reward_mean"] is not None
    assert not [path.name for path in folder.iterdir() if "merged" in path.name or "partial" in path.name]
    before = tree_hash(folder / "model")
    no_training(monkeypatch)
    assert start("ppo", tmp_path, *changes) == 0
    assert (folder / MERGED).is_file()
    assert require(tmp_path / "micro", "ppo").metrics["merged_gap_nats_mean"] < 1e-4
    assert tree_hash(folder / "model") == before
    written = (folder / MERGED).stat().st_mtime_ns
    assert start("ppo", tmp_path, *changes) == 0  # and that was all
    assert (folder / MERGED).stat().st_mtime_ns == written


def test_a_finished_stage_is_merged_later_as_it_would_have_been_at_its_end(
    runs: Path, unmerged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_training(monkeypatch)
    assert start("ppo", unmerged, "ppo.export_merged=false") == 0
    assert not (unmerged / "micro" / "ppo" / "merged").exists()
    assert start("ppo", unmerged, "ppo.export_merged=true") == 0
    one, other = (folder / "micro" / "ppo" / MERGED for folder in (runs, unmerged))
    assert sha256_file(one) == sha256_file(other)
    first, second = (require(folder / "micro", "ppo") for folder in (runs, unmerged))
    assert first.artifact_sha256 == second.artifact_sha256
    gaps = [stage.metrics["merged_gap_nats_max"] for stage in (first, second)]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-6)


def test_a_stage_of_an_earlier_version_is_up_to_date_whatever_it_says_of_merging(
    unmerged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They kept `export_merged` among the settings that a result depends on."""
    no_training(monkeypatch)
    file = unmerged / "micro" / "ppo" / "stage.json"
    record = json.loads(file.read_text())
    record["settings"]["ppo"]["export_merged"] = True
    file.write_text(json.dumps(record))
    assert start("ppo", unmerged, "ppo.export_merged=false") == 0


def test_a_killed_merge_leaves_nothing_that_is_read(unmerged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_training(monkeypatch)
    half = unmerged / "micro" / "ppo" / "merged.partial"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    assert start("ppo", unmerged, "ppo.export_merged=true") == 0
    assert not half.exists()
    Backbone.load(unmerged / "micro" / "ppo" / "merged")


def test_another_policy_is_never_published_as_the_merged_one(
    unmerged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Backbone.merged

    def wrong(backbone: Backbone, name: str) -> Backbone:
        merged = original(backbone, name)
        embedding: Any = merged.model.get_input_embeddings()
        with torch.no_grad():
            embedding.weight.mul_(1.5)
        return merged

    monkeypatch.setattr(Backbone, "merged", wrong)
    assert start("ppo", unmerged, "ppo.export_merged=true") == 0
    assert "rounding explains" in capsys.readouterr().err
    assert not (unmerged / "micro" / "ppo" / "merged").exists()


OPENED = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
"""


def run_python(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The code in a process of its own that works in this folder, with plain transformers and peft."""
    command = [sys.executable, "-c", OPENED + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_the_readme_of_an_adapter_opens_it_from_anywhere_after_the_run_has_moved(
    runs: Path, tmp_path: Path, stage: str
) -> None:
    moved = tmp_path / "moved"
    copy_stages(runs / "micro", moved, ("sft", stage))
    readme = (moved / stage / "model" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = code.replace('"..."', repr(str(moved)))
    done = run_python(code, Path("/"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_elsewhere_the_base_of_an_adapter_is_never_looked_for_on_the_hub(
    runs: Path, tmp_path: Path, stage: str
) -> None:
    kind = "AutoPeftModelForSequenceClassification" if stage == "reward" else "AutoPeftModelForCausalLM"
    done = run_python(f"{kind}.from_pretrained({str(runs / 'micro' / stage / 'model')!r})", tmp_path)
    assert done.returncode == 1
    assert "./sft/model" in done.stderr
    assert "couldn't connect" not in done.stderr

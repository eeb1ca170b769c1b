import hashlib
import json
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlhf.errors import UserError
from rlhf.runs.files import sha256_file
from rlhf.runs.stage import StageRun, require
from rlhf.settings.groups import LoraSettings
from rlhf.settings.recipe import load_recipe
from tests.unit.rlhf.runs.stages import (
    KLSettings,
    StageSettings,
    finish,
    make_recipe,
    opened,
    python,
    snapshot,
    write_weights,
)


def test_a_new_stage_writes_down_what_it_depends_on_and_is_not_finished(tmp_path: Path) -> None:
    with opened(make_recipe(tmp_path), {"a.jsonl": "00"}) as run:
        assert not run.resuming
        assert run.folder == tmp_path / "x" / "ppo"
        record = json.loads((run.folder / "stage.json").read_text())
        assert record["settings"]["ppo"] == {"kl": {"coefficient": 0.05}, "adapter": None, "stop": []}
        assert record["inputs"] == {"a.jsonl": "00"}
        assert not (run.folder / "manifest.json").exists()


def test_the_written_config_loads_as_the_same_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("ppo.config")
    module.SECTION = StageSettings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ppo.config", module)
    settings = StageSettings(
        kl=KLSettings(coefficient=1e-7), adapter=LoraSettings(), stop=["\n\nHuman:", "1e5"]
    )
    recipe = make_recipe(tmp_path, settings, seed=7)
    finish(recipe)
    again = load_recipe(tmp_path / "x" / "ppo" / "config.yaml")
    assert again.resolved == recipe.resolved
    assert StageRun.open(again, "ppo", {}) is None


def test_outputs_appear_together_before_the_manifest_and_match_their_hashes(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def write(folder: Path) -> None:
        seen.append(sorted(path.name for path in folder.parent.parent.iterdir()))
        write_weights()(folder)

    def write_rankings(path: Path) -> None:
        path.write_text('{"ranks": [1, 2]}\n')

    with opened(make_recipe(tmp_path)) as run:
        manifest = run.publish({"model": write, "rankings.jsonl": write_rankings}, metrics={}, counts={})
    assert seen == [[".lock", "config.yaml", "publish.partial", "stage.json"]]
    expected = {
        "ppo/model/weights.safetensors": hashlib.sha256(b"weights").hexdigest(),
        "ppo/model/extra/config.json": hashlib.sha256(b"{}").hexdigest(),
        "ppo/rankings.jsonl": hashlib.sha256(b'{"ranks": [1, 2]}\n').hexdigest(),
    }
    assert manifest.outputs == expected
    assert {name: sha256_file(tmp_path / "x" / name) for name in expected} == expected
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(expected.items()))
    assert manifest.artifact_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert manifest.path() == tmp_path / "x" / "ppo" / "model"
    assert require(tmp_path / "x", "ppo") == manifest
    assert not list((tmp_path / "x").rglob("*.partial"))


def test_a_manifest_tells_where_a_model_comes_from(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, seed=3)
    with opened(recipe, {"sft/model": "abc"}) as run:
        run.publish(
            write_model=write_weights(),
            metrics={"ppo/loss": float("nan"), "ppo/kl": 1.5},
            counts={"a.jsonl": {"read": 3}},
            wandb_url="https://wandb.example/run",
            device="cuda (H100)",
        )
    text = (run.folder / "manifest.json").read_text()
    values = json.loads(text, parse_constant=pytest.fail)
    assert values["inputs"] == {"sft/model": "abc"}
    assert values["seed"] == 3
    assert values["metrics"] == {"ppo/loss": None, "ppo/kl": 1.5}
    assert values["accounts"] == {"a.jsonl": {"read": 3}}
    assert values["device"] == "cuda (H100)"
    assert values["wandb"] == "https://wandb.example/run"
    assert {"python", "torch", "transformers", "peft"} <= values["packages"].keys()
    assert str(tmp_path) not in text


def test_a_writer_that_fails_leaves_nothing_and_the_older_output_as_it_was(tmp_path: Path) -> None:
    with opened(make_recipe(tmp_path)) as run:
        (run.folder / "model").mkdir()
        (run.folder / "model" / "old").write_text("old")
        before = snapshot(run.folder)

        def fail(folder: Path) -> None:
            (folder / "half").write_text("half")
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            run.publish(write_model=fail, metrics={}, counts={})
        assert snapshot(run.folder) == before
        run.publish(write_model=write_weights(), metrics={}, counts={})
        assert set(snapshot(run.folder / "model")) == {"weights.safetensors", "extra/config.json"}


def test_a_process_killed_while_publishing_leaves_an_unfinished_stage(tmp_path: Path) -> None:
    code = """
import os, signal
def write(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
opened(make_recipe(Path(sys.argv[1]))).publish(write_model=write, metrics={}, counts={})
"""
    process = python(code, tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    folder = tmp_path / "x" / "ppo"
    assert (folder / "publish.partial" / "model" / "half").exists()
    assert not (folder / "model").exists()
    with pytest.raises(UserError, match="has begun but not finished"):
        require(tmp_path / "x", "ppo")
    with opened(make_recipe(tmp_path)) as run:
        assert run.resuming
        assert not (folder / "publish.partial").exists()


def test_a_full_disk_is_a_users_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = """
import resource
run = opened(make_recipe(Path(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    run.publish(write_model=write_weights(bytes(200_000)), metrics={}, counts={})
except UserError as error:
    print(error)
    sys.exit(2)
"""
    process = python(code, tmp_path)
    printed, problems = process.communicate(timeout=120)
    assert process.returncode == 2, problems
    assert "cannot store the results (File too large)" in printed
    assert set(snapshot(tmp_path / "x" / "ppo")) == {".lock", "stage.json", "config.yaml"}

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.runs.stage import StageRun, require
from rlhf.settings.groups import LoraSettings
from tests.unit.rlhf.runs.stages import (
    ROOT,
    KLSettings,
    StageSettings,
    finish,
    make_recipe,
    opened,
    python,
    snapshot,
)

# Same, unfinished, different.


def test_a_finished_stage_is_up_to_date_and_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(make_recipe(tmp_path), {"a.jsonl": "00"})
    folder = tmp_path / "x" / "ppo"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    same = make_recipe(tmp_path, StageSettings(micro_batch_size=1), threads=2)
    assert StageRun.open(same, "ppo", {"a.jsonl": "00"}) is None
    assert capsys.readouterr().out == f"ppo: up to date ({folder})\n"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_staleness_is_decided_without_torch(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from rlhf.runs.stage import StageRun
from rlhf.settings.groups import ModelSettings, RunSettings, TrackingSettings
from rlhf.settings.recipe import Recipe
run = RunSettings(folder=Path(sys.argv[1]))
recipe = Recipe(run, TrackingSettings(), ModelSettings(path="m"), {}, Path())
with StageRun.open(recipe, "samples", {}, sections=("run",)) as stage:
    stage.publish({"a.jsonl": lambda path: path.touch()}, metrics={}, counts={})
assert StageRun.open(recipe, "samples", {}, sections=("run",)) is None
print(sorted({"torch", "transformers", "datasets", "wandb"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unfinished_stage_is_resumed_with_its_checkpoints(tmp_path: Path) -> None:
    with opened(make_recipe(tmp_path)) as run:
        (run.folder / "checkpoints").mkdir()
        (run.folder / "checkpoints" / "kept").write_text("")
        (run.folder / "model.partial").mkdir()
        (run.folder / "model.partial" / "half").write_text("")
        (run.folder / "stage.json.partial").write_text("{")
    with opened(make_recipe(tmp_path, threads=1)) as run:
        assert run.resuming
        assert (run.folder / "checkpoints" / "kept").exists()
        assert not list(run.folder.glob("*.partial"))
        assert "threads: 1" in (run.folder / "config.yaml").read_text()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (StageSettings(kl=KLSettings(coefficient=0.1)), "ppo.kl.coefficient was 0.05, is 0.1"),
        (StageSettings(adapter=LoraSettings(rank=8)), "ppo.adapter.rank was unset, is 8"),
        (StageSettings(stop=["a"]), 'ppo.stop.0 was unset, is "a"'),
    ],
)
def test_another_setting_is_named_with_the_three_exits(
    tmp_path: Path, change: StageSettings, named: str, finished: bool
) -> None:
    if finished:
        finish(make_recipe(tmp_path))
    else:
        opened(make_recipe(tmp_path)).close()
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as caught:
        StageRun.open(make_recipe(tmp_path, change), "ppo", {})
    text = str(caught.value)
    assert named in text
    assert "run.name=" in text
    assert f"--config {tmp_path / 'x' / 'ppo' / 'config.yaml'}" in text
    assert "--clean" in text
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"a.jsonl": "11", "b.jsonl": "22"}, "input a.jsonl has changed"),
        ({"a.jsonl": "00"}, "input b.jsonl is not used any more"),
        ({"a.jsonl": "00", "b.jsonl": "22", "c.jsonl": "33"}, "input c.jsonl is new"),
    ],
)
def test_another_input_is_named(tmp_path: Path, inputs: dict[str, str], named: str) -> None:
    finish(make_recipe(tmp_path), {"a.jsonl": "00", "b.jsonl": "22"})
    with pytest.raises(UserError, match=named):
        StageRun.open(make_recipe(tmp_path), "ppo", inputs)


def test_only_the_named_sections_count(tmp_path: Path) -> None:
    changed = make_recipe(tmp_path, StageSettings(kl=KLSettings(coefficient=0.1)))
    for recipe in (make_recipe(tmp_path), changed):
        run = StageRun.open(recipe, "samples", {}, sections=("model", "run"))
        assert run is not None
        with run:
            assert run.folder == tmp_path / "x" / "samples"
    with pytest.raises(UserError, match=r"run\.seed was 0, is 1"):
        StageRun.open(make_recipe(tmp_path, seed=1), "samples", {}, sections=("model", "run"))


def test_the_next_command_names_the_configuration_with_every_setting_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "a $ b"
    recipe = make_recipe(folder, StageSettings(kl=KLSettings(coefficient=0.7)))
    counted = make_recipe(folder)
    run = StageRun.open(recipe, "samples", {}, sections=("ppo",), counted=counted)
    assert run is not None
    with run:
        assert run.next_command("ppo") == f"make ppo CONFIG='{tmp_path}/a $$ b/x/samples/config.yaml'"
        assert "coefficient: 0.7" in (run.folder / "config.yaml").read_text()
        assert "0.7" not in (run.folder / "stage.json").read_text()


# What a later stage may trust.


@pytest.mark.parametrize(
    ("begun", "said"), [(False, "has not run yet"), (True, "has begun but not finished")]
)
def test_require_names_the_command_and_the_run(tmp_path: Path, begun: bool, said: str) -> None:
    if begun:
        opened(make_recipe(tmp_path)).close()
    with pytest.raises(UserError) as caught:
        require(tmp_path / "x", "ppo")
    assert said in str(caught.value)
    assert "make ppo" in str(caught.value)
    assert "`x`" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"weig"), r"is damaged \(4 bytes, should be 7\)"),
    ],
)
def test_a_finished_stage_without_its_output_is_not_up_to_date(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    finish(make_recipe(tmp_path))
    damage(tmp_path / "x" / "ppo" / "model" / "weights.safetensors")
    with pytest.raises(UserError, match=said) as caught:
        StageRun.open(make_recipe(tmp_path), "ppo", {})
    assert "--clean" in str(caught.value)
    with pytest.raises(UserError, match=said):
        require(tmp_path / "x", "ppo")


@pytest.mark.parametrize("name", ["manifest.json", "stage.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
        lambda text: text.replace('"stage"', '"stages"'),
        lambda text: text.replace('"ppo",', "3,"),
        lambda text: "",
    ],
)
def test_a_damaged_record_is_a_users_error(tmp_path: Path, name: str, damage: Callable[[str], str]) -> None:
    finish(make_recipe(tmp_path))
    path = tmp_path / "x" / "ppo" / name
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.raises(UserError, match="damaged or of another version"):
        StageRun.open(make_recipe(tmp_path), "ppo", {})
    opened(make_recipe(tmp_path), clean=True).close()


def test_a_moved_run_is_still_finished(tmp_path: Path) -> None:
    inputs = {"rankings.0": "00", "sft/model": "11"}
    manifest = finish(make_recipe(tmp_path), inputs)
    assert manifest.inputs == inputs
    shutil.move(tmp_path / "x", tmp_path / "elsewhere" / "y")
    moved = make_recipe(tmp_path / "elsewhere", name="y")
    assert StageRun.open(moved, "ppo", inputs) is None
    assert require(moved.run_folder, "ppo").path().is_dir()
    assert require(moved.run_folder, "ppo").artifact_sha256 == manifest.artifact_sha256


def test_a_runs_folder_that_cannot_be_one_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/dev/null/runs")):
        with pytest.raises(UserError, match=r"cannot use this folder") as caught:
            StageRun.open(make_recipe(folder), "ppo", {})
        assert "run.folder=" in str(caught.value)
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="cannot use this folder"):
        StageRun.open(make_recipe(tmp_path), "ppo", {})


def test_an_unwritable_folder_is_a_users_error(tmp_path: Path) -> None:
    code = """
import os
if os.geteuid() == 0:
    os.setuid(65534)  # nothing is forbidden to root
try:
    StageRun.open(make_recipe(Path(sys.argv[1])), "ppo", {})
except UserError as error:
    print(error)
    sys.exit(2)
"""
    tmp_path.chmod(0o500)
    process = python(code, tmp_path)
    printed, problems = process.communicate(timeout=120)
    tmp_path.chmod(0o700)
    assert process.returncode == 2, problems
    assert "cannot use this folder (Permission denied)" in printed


def test_details_make_a_stage_stale_but_not_one_that_was_recorded_without_them(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    finish(recipe, {"a": "1"})
    path = tmp_path / "x" / "ppo" / "stage.json"
    now = {"modules of a": "2"}
    with pytest.raises(UserError, match="input modules of a is new"):
        StageRun.open(recipe, "ppo", {"a": "1"}, details=now)
    earlier = json.loads(path.read_text())
    del earlier["details"]
    path.write_text(json.dumps(earlier))
    assert StageRun.open(recipe, "ppo", {"a": "1"}, details=now) is None
    with pytest.raises(UserError, match="input a has changed"):
        StageRun.open(recipe, "ppo", {"a": "3"}, details=now)

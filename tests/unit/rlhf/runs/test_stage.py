import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from rlhf.errors import UserError
from rlhf.runs.files import sha256_file, tree_hash
from rlhf.runs.manifest import Manifest, git_state
from rlhf.runs.stage import StageRun, require
from rlhf.settings.groups import LoraSettings, ModelSettings, RunSettings, Settings, TrackingSettings, setting
from rlhf.settings.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[4]


class KLSettings(Settings):
    """A group."""

    coefficient: float = 0.05
    """A number that changes the result."""


class StageSettings(Settings):
    """A section with a group and a setting that changes nothing."""

    kl: KLSettings = KLSettings()
    """A group."""
    adapter: LoraSettings | None = None
    """A group that may be missing."""
    stop: list[str] = []
    """A list."""
    micro_batch_size: int = setting(4, semantic=False)
    """A setting that changes no result."""


def make_recipe(
    folder: Path, ppo: StageSettings | None = None, *, name: str = "x", seed: int = 0, threads: int = 0
) -> Recipe:
    return Recipe(
        run=RunSettings(name=name, folder=folder, seed=seed, threads=threads),
        tracking=TrackingSettings(),
        model=ModelSettings(path="base"),
        sections={"ppo": ppo or StageSettings()},
        path=Path("recipe.yaml"),
    )


def opened(recipe: Recipe, inputs: Mapping[str, str] | None = None, *, clean: bool = False) -> StageRun:
    run = StageRun.open(recipe, "ppo", inputs or {}, clean=clean)
    assert run is not None
    return run


def write_weights(content: bytes = b"weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(content)
        (folder / "extra").mkdir()
        (folder / "extra" / "config.json").write_text("{}")

    return write


def finish(recipe: Recipe, inputs: Mapping[str, str] | None = None) -> Manifest:
    with opened(recipe, inputs) as run:
        return run.publish(write_model=write_weights(), metrics={"ppo/reward_mean": 0.5}, counts={})


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code` with this module's names."""
    preamble = "import sys; from tests.unit.rlhf.runs.test_stage import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", preamble + code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# What is written when.


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


OTHER = StageSettings(kl=KLSettings(coefficient=0.1))


def test_clean_begins_again(tmp_path: Path) -> None:
    finish(make_recipe(tmp_path))
    (tmp_path / "x" / "ppo" / "checkpoints").mkdir()
    with opened(make_recipe(tmp_path, OTHER), clean=True) as run:
        assert not run.resuming
        run.drop_replaced()
        assert set(os.listdir(run.folder)) == {".lock", "stage.json", "config.yaml"}


def refuse_an_input(recipe: Recipe) -> None:
    """Begin again with `--clean`, and end as a stage does that finds a mistake in what it reads."""
    with opened(recipe, clean=True):
        raise UserError("line 7 is no ranking")


def test_a_refused_input_costs_no_finished_result(tmp_path: Path) -> None:
    finish(make_recipe(tmp_path))
    before = snapshot(tmp_path)
    for recipe in (make_recipe(tmp_path), make_recipe(tmp_path, OTHER)):
        with pytest.raises(UserError, match="line 7"):
            refuse_an_input(recipe)
    assert StageRun.open(make_recipe(tmp_path), "ppo", {}) is None
    after = snapshot(tmp_path)
    assert {name: data for name, data in after.items() if not name.endswith(".lock")} == {
        name: data for name, data in before.items() if not name.endswith(".lock")
    }


@pytest.mark.parametrize("died_after", [0, 1, 2, 3])
def test_a_result_that_was_being_set_aside_when_the_process_died_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_after: int
) -> None:
    finish(make_recipe(tmp_path))
    rename, left = Path.rename, died_after

    def die(path: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            opened(make_recipe(tmp_path), clean=True)
    assert StageRun.open(make_recipe(tmp_path), "ppo", {}) is None
    require(tmp_path / "x", "ppo")


def test_a_process_that_dies_after_clean_goes_on_and_the_old_result_still_waits(tmp_path: Path) -> None:
    finish(make_recipe(tmp_path))
    opened(make_recipe(tmp_path, OTHER), clean=True).close()  # died while it read its inputs
    with pytest.raises(UserError, match="line 7"):
        refuse_an_input(make_recipe(tmp_path, OTHER))
    assert StageRun.open(make_recipe(tmp_path), "ppo", {}) is None


@pytest.mark.parametrize("clean", [True, False])
def test_a_folder_that_no_stage_has_made_is_left_alone(tmp_path: Path, clean: bool) -> None:
    folder = tmp_path / "x" / "ppo"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"no stage has made \(thesis\.tex\)"):
        StageRun.open(make_recipe(tmp_path), "ppo", {}, clean=clean)
    assert (folder / "thesis.tex").read_text() == "years of work"


# One process at a time.


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = python(
        "run = opened(make_recipe(Path(sys.argv[1])))\nprint('held', flush=True)\ninput()", tmp_path
    )
    assert holder.stdout is not None
    try:
        assert "held" in holder.stdout.readline()
        for clean in (False, True):
            with pytest.raises(UserError, match=f"process {holder.pid} on .* is running this stage"):
                StageRun.open(make_recipe(tmp_path), "ppo", {}, clean=clean)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=60)
    with opened(make_recipe(tmp_path)) as run:
        assert run.resuming


def test_the_lock_ends_with_the_block_also_after_an_error(tmp_path: Path) -> None:
    def fail_at_work() -> None:
        with opened(make_recipe(tmp_path)):
            with pytest.raises(UserError, match="is running this stage"):
                StageRun.open(make_recipe(tmp_path), "ppo", {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_at_work()
    opened(make_recipe(tmp_path)).close()


def test_what_a_stage_reads_cannot_be_made_again_meanwhile(tmp_path: Path) -> None:
    finish(make_recipe(tmp_path))
    recipe = make_recipe(tmp_path)
    reader, other = (StageRun.open(recipe, name, {}, reads=["ppo"], sections=()) for name in ("a", "b"))
    assert reader is not None
    assert other is not None
    said = f"process {os.getpid()} on .* is running `b` on what this stage has made"
    with other, reader, pytest.raises(UserError, match=said):
        opened(recipe, clean=True)
    require(tmp_path / "x", "ppo")
    with opened(recipe, clean=True), pytest.raises(UserError, match="is running this stage"):
        StageRun.open(recipe, "c", {}, reads=["ppo"], sections=())


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


# Hashes and provenance.


def test_a_trees_hash_depends_on_names_and_contents_and_not_on_its_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_weights()(tmp_path / name)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
    (tmp_path / "two" / "weights.safetensors").write_bytes(b"weightz")
    assert tree_hash(tmp_path / "one") != tree_hash(tmp_path / "two")
    (tmp_path / "one" / "weights.safetensors").rename(tmp_path / "one" / "weights.bin")
    assert tree_hash(tmp_path / "one") != tree_hash(tmp_path / "two")


def test_the_code_revision_is_that_of_the_repository_that_tracks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    code, other = tmp_path / "code.py", tmp_path / "other.py"
    code.write_text("1")
    assert git_state(code) == (None, None)
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    assert git_state(code) == (git("rev-parse", "HEAD"), False)
    other.write_text("1")
    assert git_state(code) == (git("rev-parse", "HEAD"), False)
    assert git_state(other) == (None, None)
    code.write_text("2")
    assert git_state(code) == (git("rev-parse", "HEAD"), True)
    monkeypatch.setenv("PATH", "")
    assert git_state(code) == (None, None)

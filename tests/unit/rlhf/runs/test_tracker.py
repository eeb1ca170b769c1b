import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from rlhf.errors import EXIT_PREEMPTED, UserError
from rlhf.preemption import Preempted
from rlhf.runs import wandb_run
from rlhf.runs.metrics import read_metrics
from rlhf.runs.tracker import Tracker
from rlhf.settings.groups import ModelSettings, RunSettings, TrackingSettings
from rlhf.settings.recipe import Recipe
from tests.support.wandb_offline import OfflineRun, merge_steps, read_offline_run

ROOT = Path(__file__).resolve().parents[4]
Mode = Literal["auto", "online", "offline", "off"]


def make_recipe(folder: Path, mode: Mode = "off") -> Recipe:
    return Recipe(
        run=RunSettings(name="x", folder=folder, seed=3),
        tracking=TrackingSettings(wandb=mode, project="house"),
        model=ModelSettings(path="base"),
        sections={},
        path=Path("recipe.yaml"),
    )


def tracker(folder: Path, mode: Mode = "off", *, resume_step: int | None = None) -> Tracker:
    stage = folder / "x" / "ppo"
    stage.mkdir(parents=True, exist_ok=True)
    return Tracker(make_recipe(folder, mode), "ppo", stage, resume_step=resume_step)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "x" / "ppo" / "metrics.jsonl")


def tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted((folder / "x" / "ppo" / "samples").iterdir())
    return {path.name: [json.loads(line) for line in path.read_text().split("\n")[:-1]] for path in files}


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code` with this module's names."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from tests.unit.rlhf.runs.test_tracker import *\n{code}",
            *map(str, arguments),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# metrics.jsonl


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    code = """
with tracker(Path(sys.argv[1])) as log:
    for step in range(3):
        log.log({"ppo/loss": step / 3}, step)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = python(code, tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert metrics(tmp_path) == [{"step": step, "ppo/loss": step / 3} for step in range(3)]


def test_numbers_come_back_exactly_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    import torch  # here, because the processes that this file starts do not need it

    with tracker(tmp_path) as log:
        log.log({"ppo/a": 0.1, "ppo/b": float("nan"), "ppo/c": 3, "ppo/d": float("-inf")}, step=0)
        log.log({"ppo/a": torch.tensor(0.1, dtype=torch.float64), "ppo/b": np.float32(0.1)}, step=1)  # type: ignore[dict-item]
    text = (tmp_path / "x" / "ppo" / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert lines[0] == {"step": 0, "ppo/a": 0.1, "ppo/b": None, "ppo/c": 3, "ppo/d": None}
    assert lines[1] == {"step": 1, "ppo/a": 0.1, "ppo/b": float(np.float32(0.1))}


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([({"ppo/a": 1.0}, 2), ({"ppo/a": 1.0}, 1)], "step 1 after step 2"),
        ([({"ppo/a": 1.0}, 2), ({"ppo/a": 1.0}, 2)], "logged twice at step 2"),
        ([({"loss": 1.0}, 0)], "not a metric's name"),
        ([({"ppo/Loss-1": 1.0}, 0)], "not a metric's name"),
        ([({"ppo/a": "high"}, 0)], "not a number"),
    ],
)
def test_what_no_reader_could_make_sense_of_is_refused(
    tmp_path: Path, calls: Sequence[tuple[dict[str, Any], int]], said: str
) -> None:
    with tracker(tmp_path) as log:
        for row, step in calls[:-1]:
            log.log(row, step)
        with pytest.raises(AssertionError, match=said):
            log.log(*calls[-1])


def test_one_step_may_have_several_lines(tmp_path: Path) -> None:
    with tracker(tmp_path) as log:
        log.log({"ppo/a": 1.0}, 2)
        log.log({"ppo/b": 2.0}, 2)
    assert merge_steps(metrics(tmp_path)) == [{"step": 2, "ppo/a": 1.0, "ppo/b": 2.0}]


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with tracker(tmp_path) as log:
        for step in range(5):
            log.log({"ppo/a": float(step)}, step)
            log.table("ppo/rollouts", ["text"], [[f"at {step}"]], step)
    path = tmp_path / "x" / "ppo" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "ppo/a"')  # a line that kill -9 has torn
    with tracker(tmp_path, resume_step=2) as log:
        assert [row["step"] for row in metrics(tmp_path)] == [0, 1, 2]
        assert list(tables(tmp_path)) == [f"ppo.rollouts-{step:06d}.jsonl" for step in range(3)]
        log.log({"ppo/a": 9.0}, 2)  # evaluated once more at the checkpoint: already there
        log.log({"ppo/a": 3.0}, 3)
    assert [row["ppo/a"] for row in metrics(tmp_path)] == [0.0, 1.0, 2.0, 3.0]


def test_resuming_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    with tracker(tmp_path) as log:
        log.log({"ppo/a": 1.0}, 7)
        log.table("ppo/rollouts", ["text"], [["a"]], 7)
    with tracker(tmp_path, resume_step=None) as log:
        log.log({"ppo/a": 2.0}, 0)
    assert metrics(tmp_path) == [{"step": 0, "ppo/a": 2.0}]
    assert tables(tmp_path) == {}


def test_a_damaged_line_is_a_users_error_that_names_it(tmp_path: Path) -> None:
    with tracker(tmp_path) as log:
        for step in range(3):
            log.log({"ppo/a": 1.0}, step)
    path = tmp_path / "x" / "ppo" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 1', '"step": one'))
    with pytest.raises(UserError, match="line 2: not a line of metrics"):
        tracker(tmp_path, resume_step=2)


def test_a_table_is_a_file_of_objects(tmp_path: Path) -> None:
    rows: list[list[Any]] = [["two\nlines and \u2028 more", 0.1, None], ["é", float("nan"), 3]]
    with tracker(tmp_path) as log:
        log.table("ppo/rollouts", ["text", "score", "tokens"], rows, step=12)
    assert tables(tmp_path) == {
        "ppo.rollouts-000012.jsonl": [
            {"text": "two\nlines and \u2028 more", "score": 0.1, "tokens": None},
            {"text": "é", "score": None, "tokens": 3},
        ]
    }


# Weights & Biases


def offline_run(folder: Path) -> OfflineRun:
    return read_offline_run(folder / "x" / "ppo")


def test_an_offline_run_holds_exactly_what_the_stages_files_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[list[Any]] = [
        ["a \u2028 b", 0.1, None, True],
        ["é\n", 1e-300, 3, False],
        ["", None, 2**60, True],
    ]
    columns = ["text", "score", "tokens", "ended"]
    with tracker(tmp_path, "offline") as log:
        assert log.url is None
        log.log({"ppo/heldout": 1 / 3}, 0)
        for step in range(1, 400):  # long enough for more than one block of the file
            log.log({"ppo/loss": 1 / (step + 0.1), "ppo/count": step, "ppo/bad": float("nan")}, step)
        log.table("ppo/rollouts", columns, rows, 399)
        log.log({"ppo/after": 1e-17}, 399)
        log.log({"ppo/last": 5e-324}, 500)
        log.finish({"artifact_sha256": "ab" * 32, "ppo/reward_mean": 0.25})
    run = offline_run(tmp_path)
    assert run.history == merge_steps(metrics(tmp_path))
    assert len(run.history) == 401
    assert run.config == make_recipe(tmp_path, "offline").resolved
    assert run.summary["artifact_sha256"] == "ab" * 32
    assert run.summary["ppo/reward_mean"] == 0.25
    assert run.tables == {("ppo/rollouts", 399): {"columns": columns, "data": rows}}
    assert tables(tmp_path)["ppo.rollouts-000399.jsonl"] == [
        dict(zip(columns, row, strict=True)) for row in rows
    ]
    assert (run.project, run.group, run.name, run.job_type) == ("house", "x", "x/ppo", "ppo")
    assert run.exit_code == 0
    printed, errors = capsys.readouterr()
    folder = next((tmp_path / "x" / "ppo" / "wandb").glob("offline-run-*"))
    assert printed == f"W&B was offline; upload with: wandb sync {folder}\n"
    assert errors == ""


def test_an_offline_run_tells_nothing_of_the_code_and_the_command_line(tmp_path: Path) -> None:
    with tracker(tmp_path, "offline") as log:
        log.log({"ppo/a": 1.0}, 0)
    assert "history" in offline_run(tmp_path).kinds
    assert not {"environment", "output", "output_raw"} & offline_run(tmp_path).kinds
    folder = next((tmp_path / "x" / "ppo" / "wandb").glob("offline-run-*"))
    assert [path.name for path in (folder / "files").rglob("*") if path.is_file()] == []


def test_a_killed_and_resumed_stage_is_one_whole_offline_run(tmp_path: Path) -> None:
    code = """
with tracker(Path(sys.argv[1]), "offline") as log:
    for step in range(6):
        log.log({"ppo/a": step / 7}, step)
        if step % 2 == 0:
            log.table("ppo/rollouts", ["text"], [[f"at {step}"]], step)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = python(code, tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    run_id = (tmp_path / "x" / "ppo" / "wandb_id").read_text().strip()
    with tracker(tmp_path, "offline", resume_step=3) as log:
        log.log({"ppo/a": 4 / 7}, 4)
        log.finish({})
    run = offline_run(tmp_path)
    assert run.id == run_id
    assert run.history == metrics(tmp_path) == [{"step": step, "ppo/a": step / 7} for step in range(5)]
    assert run.tables == {
        ("ppo/rollouts", step): {"columns": ["text"], "data": [[f"at {step}"]]} for step in (0, 2)
    }


def test_a_stage_that_fails_ends_its_run_as_failed(tmp_path: Path) -> None:
    def fail_at_work() -> None:
        with tracker(tmp_path, "offline") as log:
            log.log({"ppo/a": 1.0}, 0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_at_work()
    assert offline_run(tmp_path).exit_code == 1
    assert offline_run(tmp_path).history == [{"step": 0, "ppo/a": 1.0}]


def test_a_preempted_stage_ends_its_run_as_preempted(tmp_path: Path) -> None:
    def be_preempted() -> None:
        with tracker(tmp_path, "offline") as log:
            log.log({"ppo/a": 1.0}, 0)
            raise Preempted

    with pytest.raises(Preempted):
        be_preempted()
    assert offline_run(tmp_path).exit_code == EXIT_PREEMPTED
    assert "preempting" in offline_run(tmp_path).kinds
    assert offline_run(tmp_path).history == [{"step": 0, "ppo/a": 1.0}]


def test_a_wandb_that_hangs_holds_no_preempted_process_up(tmp_path: Path) -> None:
    code = """
import threading, time
from rlhf.commands.process import run_command
def work(argv):
    with tracker(Path(sys.argv[1]), "offline") as log:
        log.log({"ppo/a": 1.0}, 0)
        log._wandb._end = lambda exit_code: threading.Event().wait()
        os.kill(os.getpid(), signal.SIGTERM)
sys.exit(run_command(work))
"""
    process = python(code, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED, errors
    assert "leaving without it" in errors
    assert metrics(tmp_path) == [{"step": 0, "ppo/a": 1.0}]


@pytest.mark.parametrize(("mode", "variable"), [("off", "online"), ("auto", "disabled")])
def test_off_never_imports_wandb(tmp_path: Path, mode: str, variable: str) -> None:
    code = """
import os, sys
from pathlib import Path
from rlhf.settings.groups import ModelSettings, RunSettings, TrackingSettings
from rlhf.settings.recipe import Recipe
from rlhf.runs.tracker import Tracker
folder = Path(sys.argv[1])
recipe = Recipe(RunSettings(), TrackingSettings(wandb=sys.argv[2]), ModelSettings(path="m"), {}, Path())
with Tracker(recipe, "ppo", folder, resume_step=None) as log:
    log.log({"ppo/a": 1.0}, 0)
    log.finish({})
assert "wandb" not in sys.modules and "torch" not in sys.modules
"""
    environment = {**os.environ, "WANDB_MODE": variable}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path), mode]
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    assert not (tmp_path / "wandb").exists()


@pytest.fixture
def _logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("WANDB_MODE")
    _forget_wandb()


def _forget_wandb() -> None:
    """W&B keeps settings for the life of a process: a test that changes the environment begins again."""
    import wandb

    wandb.teardown()


@pytest.mark.usefixtures("_logged_out")
def test_online_without_a_login_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody is logged in") as caught:
        tracker(tmp_path, "online")
    assert "wandb login" in str(caught.value)


@pytest.mark.usefixtures("_logged_out")
def test_auto_without_a_login_is_offline(tmp_path: Path) -> None:
    with tracker(tmp_path, "auto") as log:
        log.log({"ppo/a": 1.0}, 0)
    assert offline_run(tmp_path).history == [{"step": 0, "ppo/a": 1.0}]


@pytest.mark.usefixtures("_logged_out")
def test_a_server_out_of_reach_makes_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_run, "_INIT_SECONDS", 2.0)
    with tracker(tmp_path, "auto") as log:
        log.log({"ppo/a": 1.0}, 0)
        log.finish({"artifact_sha256": "00"})
    printed, errors = capfd.readouterr()
    assert "warning: W&B failed" in errors
    assert "continuing offline" in errors
    assert "Traceback" not in errors
    assert "wandb sync" in printed
    assert offline_run(tmp_path).history == [{"step": 0, "ppo/a": 1.0}]
    assert offline_run(tmp_path).summary["artifact_sha256"] == "00"
    _forget_wandb()


def test_a_broken_wandb_ends_no_training(tmp_path: Path) -> None:
    code = """
with tracker(Path(sys.argv[1]), "offline") as log:
    log.log({"ppo/a": 1.0}, 0)
    pgrep = ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"]
    core = int(subprocess.run(pgrep, capture_output=True, text=True).stdout)
    os.kill(core, signal.SIGKILL)
    os.waitid(os.P_PID, core, os.WEXITED | os.WNOWAIT)  # its end is left for W&B to see
    for step in range(1, 4):
        log.log({"ppo/a": 1.0}, step)
        log.table("ppo/rollouts", ["text"], [["a"]], step)
    log.finish({"artifact_sha256": "00"})
"""
    process = python(code, tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.count("warning: W&B failed") == 1
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1, 2, 3]

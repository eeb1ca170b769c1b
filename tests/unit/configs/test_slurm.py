"""The SLURM script, run for real with make; `srun`, `scontrol` and Python are stand-ins."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.make_environment import make_environment

SRUN = """\
import os, signal, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--")]
step = subprocess.Popen(command, start_new_session=True, env={**os.environ, "BATCH": str(os.getppid())})
signal.signal(signal.SIGUSR1, lambda *_: os.killpg(step.pid, signal.SIGUSR1))  # for all processes of the step
status = step.wait()
try:
    os.killpg(step.pid, signal.SIGKILL)  # what make has left behind ends with it
except ProcessLookupError:
    pass
sys.exit(status if status >= 0 else 128 - status)
"""
SCONTROL = """\
import json, sys
if sys.argv[1] == "show":
    print("node-a", "node-b", sep="\\n")
else:
    with open("calls.jsonl", "a") as calls:
        print(json.dumps(["scontrol", *sys.argv[1:]]), file=calls)
"""
STAGE = """\
import json, os, pathlib, signal, sys, time
stage = next(word for word in sys.argv if word in ("sft", "reward", "ppo"))
def say(*words):
    with open("calls.jsonl", "a") as calls:
        print(json.dumps(words), file=calls)
def save(*_):
    time.sleep(0.2)
    say("saved", stage)
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
say(stage, *sys.argv[1:])
who, _, how = os.environ.get("EVENT", "").partition(" ")
if who == stage and how == "warned":
    os.kill(int(os.environ["BATCH"]), signal.SIGUSR1)
    time.sleep(60)
elif who == stage and how == "warned too late":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.kill(int(os.environ["BATCH"]), signal.SIGUSR1)
    time.sleep(0.2)
elif who == stage and how == "told to end":
    os.kill(os.getppid(), signal.SIGTERM)
    sys.exit(75)
elif who == stage:
    sys.exit(int(how))
"""
REQUEUE = ["scontrol", "requeue", "12345"]
PLAIN, FOR_A_SHELL = "run.seed=1", "ppo.evaluation.best_of=[2,4]"
"""Make calls Python by itself for the first, and through a shell for the second."""


class Job:
    """A folder with the script and the Makefile, and how the script ended in it."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder / "my checkout"
        self.folder.mkdir()
        self.script = root / "configs" / "slurm" / "run.sbatch"
        shutil.copy(root / "Makefile", self.folder)
        self.commands = folder / "bin"
        self.commands.mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": STAGE}.items():
            (self.commands / name).write_text(f"#!{sys.executable} -S\n{text}")
            (self.commands / name).chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> tuple[int, list[Any]]:
        """Its exit status, and the calls of stages and of `scontrol requeue`."""
        slurm = {
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_NODEID": "1",
        }
        path = f"{self.commands}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(self.script), *arguments, "VENV=none", f"PYTHON={self.commands}/python"],
            cwd=self.folder,
            env={**make_environment(), **slurm, "PATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=100,
        )
        calls = self.folder / "calls.jsonl"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, [json.loads(line) for line in lines]


@pytest.fixture
def job(tmp_path: Path, root: Path) -> Job:
    return Job(tmp_path, root)


def names(calls: list[Any]) -> list[str]:
    return [" ".join(call[:2]) if call[0] == "saved" else call[0] for call in calls]


def test_stages_run_in_order_with_what_make_would_be_told(job: Job) -> None:
    settings = "ppo.num_iterations=3 'tracking.project=two words' 'sft.demonstrations=[{path: a}]'"
    status, calls = job.run(
        "sft", "ppo", "CONFIG=my recipe.yaml", f"SET={settings}", "ZERO=3", SLURM_GPUS_ON_NODE="8"
    )
    assert status == 0
    assert names(calls) == ["sft", "ppo"]
    launcher = ["-m", "rlhf.launch", "--gpus", "8", "--zero", "3", "--nodes", "2", "--node-rank", "1"]
    recipe = ["--config", "my recipe.yaml", "ppo.num_iterations=3", "tracking.project=two words"]
    for [stage, *command] in calls:
        assert command[:10] == launcher
        assert command[10:13] == ["--master", "node-a:22345", stage]
        assert command[13:] == [*recipe, "sft.demonstrations=[{path: a}]"]


def test_gpus_can_be_given_where_slurm_knows_of_none(job: Job) -> None:
    _, [[_, *given]] = job.run("sft", "GPUS=2", SLURM_GPUS_ON_NODE="8")
    assert given[given.index("--gpus") + 1] == "2"


@pytest.mark.parametrize("setting", [PLAIN, FOR_A_SHELL])
def test_a_stage_that_is_warned_saves_and_the_job_goes_back_into_the_queue(job: Job, setting: str) -> None:
    status, calls = job.run("sft", "reward", "ppo", f"SET={setting}", EVENT="reward warned")
    assert status != 0
    assert names(calls) == ["sft", "reward", "saved reward", "scontrol"]
    assert calls[-1] == REQUEUE


def test_a_warning_at_the_end_of_a_stage_keeps_the_next_from_beginning(job: Job) -> None:
    status, calls = job.run("sft", "ppo", EVENT="sft warned too late")
    assert status != 0
    assert names(calls) == ["sft", "scontrol"]


def test_a_job_that_finishes_after_the_warning_has_finished(job: Job) -> None:
    status, calls = job.run("sft", "ppo", EVENT="ppo warned too late")
    assert status == 0
    assert names(calls) == ["sft", "ppo"]


def test_a_stage_that_slurm_tells_to_end_puts_the_job_back_into_the_queue(job: Job) -> None:
    status, calls = job.run("sft", "ppo", EVENT="sft told to end")
    assert status == 143
    assert calls[1:] == [REQUEUE]


@pytest.mark.parametrize("failure", ["2", "75", "137"])
def test_a_stage_that_fails_is_not_tried_again(job: Job, failure: str) -> None:
    status, calls = job.run("sft", "reward", "ppo", EVENT=f"reward {failure}")
    assert status == 2
    assert names(calls) == ["sft", "reward"]


def test_a_job_without_stages_does_not_count_as_finished(job: Job) -> None:
    status, calls = job.run("CONFIG=recipe.yaml")
    assert status != 0
    assert calls == []

"""Stages on two processes, launched by make as a user does, and what becomes of them when a rank fails."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rlhf.runs import checkpoints
from rlhf.runs.metrics import read_metrics
from rlhf.runs.stage import require
from tests.integration.micro import CONFIG, assert_same_results, copy_stages, make_run

pytestmark = pytest.mark.slow
pytest.importorskip("deepspeed")

HANG_SECONDS = 600


def wait_for_rows(make: "subprocess.Popen[str]", run: Path, count: int) -> None:
    """Wait until so many lines of metrics are there."""
    begun = time.monotonic()
    while len(read_metrics(run / "ppo" / "metrics.jsonl")) < count:
        assert make.poll() is None, make.communicate()[0]
        assert time.monotonic() < begun + HANG_SECONDS
        time.sleep(0.05)


def launcher(make: "subprocess.Popen[str]") -> psutil.Process:
    return next(child for child in psutil.Process(make.pid).children() if "rlhf.launch" in child.cmdline())


def rank_process(make: "subprocess.Popen[str]", rank: int) -> psutil.Process:
    children = psutil.Process(make.pid).children(recursive=True)
    return next(child for child in children if _rank_of(child) == str(rank))


def _rank_of(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("RANK"))
    except psutil.Error:  # it has ended meanwhile
        return ""


@pytest.fixture(scope="module")
def launched(root: Path, runs: Path) -> str:
    """What the run `launched` said, on two processes under ZeRO-3, left alone."""
    copy_stages(runs / "micro", runs / "launched")
    make = make_run(root, runs, "launched", "ppo", "GPUS=2", "ZERO=3", settings="ppo.export_merged=true")
    return make.communicate(timeout=HANG_SECONDS)[0]


def test_a_launched_stage_gives_what_one_process_gives(launched: str, runs: Path) -> None:
    one, two = require(runs / "micro", "ppo"), require(runs / "launched", "ppo")
    assert launched.count("next: make chat") == 1  # rank 0 speaks, and nobody else
    assert two.outputs.keys() == one.outputs.keys()
    assert two.metrics == pytest.approx(one.metrics, rel=1e-3, abs=1e-4)
    rows = [read_metrics(runs / name / "ppo" / "metrics.jsonl") for name in ("micro", "launched")]
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[0]]
    for file in ("model/adapter_model.safetensors", "merged/model.safetensors"):
        ours, theirs = (load_file(runs / name / "ppo" / file) for name in ("launched", "micro"))
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in ours)


def test_preempted_ranks_save_end_and_resume_bitwise(launched: str, root: Path, runs: Path) -> None:
    assert launched
    copy_stages(runs / "micro", runs / "preempted")
    common = ("GPUS=2", "ZERO=3")
    make = make_run(root, runs, "preempted", "ppo", *common, settings="ppo.export_merged=true")
    wait_for_rows(make, runs / "preempted", 2)
    launcher(make).send_signal(signal.SIGTERM)
    output, _ = make.communicate(timeout=HANG_SECONDS)
    assert output.count("SIGTERM: saving, then ending") == 1
    assert output.count("ended by SIGTERM; the same command resumes") == 1
    assert "Error 75" in output  # make's own status is 2
    assert not re.search("Traceback|lost|killed", output)
    assert checkpoints.latest(runs / "preempted" / "ppo") is not None
    make = make_run(root, runs, "preempted", "ppo", *common, settings="ppo.export_merged=true")
    output, _ = make.communicate(timeout=HANG_SECONDS)
    assert make.returncode == 0, output
    assert_same_results(runs / "launched", runs / "preempted", "ppo")


def test_rank_0_saves_though_it_waits_for_a_rank_that_is_stopped(root: Path, runs: Path) -> None:
    copy_stages(runs / "micro", runs / "stopped")
    endless = "ppo.num_iterations=1000 ppo.checkpoint_every_iterations=1000 ppo.evaluation.every_iterations=0"
    make = make_run(root, runs, "stopped", "ppo", "GPUS=2", "ZERO=2", settings=endless)
    wait_for_rows(make, runs / "stopped", 3)
    first, other = rank_process(make, 0), rank_process(make, 1)
    other.suspend()
    try:
        time.sleep(2)  # rank 0 comes to a collective, in which it hears no signal
        launcher(make).send_signal(signal.SIGTERM)
        first.wait(HANG_SECONDS)
    finally:
        other.resume()
    output, _ = make.communicate(timeout=HANG_SECONDS)
    assert "Error 75" in output
    found = checkpoints.latest(runs / "stopped" / "ppo")
    assert found is not None
    # It may have logged an iteration and wait for the other's part of the state after it.
    assert found.step >= read_metrics(runs / "stopped" / "ppo" / "metrics.jsonl")[-1]["step"] - 1 >= 1


def test_when_a_rank_is_killed_the_other_ends_and_the_rank_is_named(root: Path, runs: Path) -> None:
    copy_stages(runs / "micro", runs / "killed")
    make = make_run(root, runs, "killed", "ppo", "GPUS=2", "ZERO=2", settings="ppo.num_iterations=1000")
    wait_for_rows(make, runs / "killed", 3)
    rank_process(make, 1).send_signal(signal.SIGKILL)
    output, _ = make.communicate(timeout=HANG_SECONDS)
    assert make.returncode != 0
    assert "ppo: rank 1 was killed by signal 9; the other ranks were ended" in output
    assert "Traceback" not in output


def test_what_all_ranks_refuse_is_said_once_and_before_anything_loads(root: Path, runs: Path) -> None:
    copy_stages(runs / "micro", runs / "refused")
    make = make_run(root, runs, "refused", "ppo", "GPUS=2", "ZERO=3", settings="model.precision=nf4")
    output, _ = make.communicate(timeout=HANG_SECONDS)
    assert make.returncode == 2
    assert output.count("an nf4 base cannot be sharded over ranks") == 1
    assert not re.search("rank 1|Traceback|Loading", output)
    assert not (runs / "refused" / "ppo" / "config.yaml").exists()


# From a wheel.

PACKAGES = ("rlhf", "sft", "reward", "ppo", "labeling", "plan")


@pytest.fixture
def installed(root: Path, tmp_path: Path) -> Path:
    """The folder that a wheel of this checkout is installed in."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    for name in PACKAGES:
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(root / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True)
    [wheel] = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True
    )
    return site


def test_a_wheel_launches_a_stage_where_no_checkout_is(
    root: Path, runs: Path, installed: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((root / CONFIG).read_text().replace("configs/", f"{root}/configs/"))
    copy_stages(runs / "micro", runs / "wheel")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )

    assert python("-c", "import rlhf; print(rlhf.__file__)").stdout == f"{installed}/rlhf/__init__.py\n"
    assert "sft.demonstrations" in python("-m", "sft", "--help").stdout
    settings = [f"run.folder={runs}", "run.name=wheel", "tracking.wandb=off", "ppo.num_iterations=1"]
    launch = ["rlhf.launch", "--gpus", "2", "--zero", "2", "ppo", "--config", str(recipe), *settings]
    done = python("-m", *launch)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("next: make chat") == 1
    assert require(runs / "wheel", "ppo").metrics["after_kl_nats_per_response"] > 0

"""What docs/cluster.md promises of `make`, on CPUs: each way of launching gives one process's result."""

import random
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.runs.metrics import read_metrics
from rlhf.runs.stage import require
from tests.integration.micro import MODEL, STAGES, copy_stages, make_run, start

pytestmark = pytest.mark.slow
pytest.importorskip("deepspeed")

HANG_SECONDS = 600
QUANTIZED = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def make(root: Path, runs: Path, name: str, *words: str, settings: str = "") -> "subprocess.Popen[str]":
    """`make_run`, as `runs` has made `micro`."""
    return make_run(root, runs, name, *words, settings=f"ppo.export_merged=true {settings}")


def said(launched: "subprocess.Popen[str]") -> str:
    """All that it has said when it has ended well."""
    output, _ = launched.communicate(timeout=HANG_SECONDS)
    assert launched.returncode == 0, output
    return output


def assert_same_result(one: Path, other: Path, stage: str) -> None:
    """The two runs have published the same weights and measured the same, to rounding."""
    assert require(other, stage).metrics == pytest.approx(require(one, stage).metrics, rel=1e-3, abs=1e-4)
    rows = [read_metrics(run / stage / "metrics.jsonl") for run in (one, other)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    weights = [load_file(run / stage / MODEL[stage]) for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(tensor, weights[1][key], atol=1e-4) for key, tensor in weights[0].items())


def test_one_command_runs_all_stages_on_two_processes(root: Path, runs: Path) -> None:
    output = said(make(root, runs, "three", *STAGES, "GPUS=2", "ZERO=2"))
    assert [output.count(f"next: make {goal}") for goal in ("reward", "ppo", "chat")] == [1, 1, 1]
    for stage in STAGES:
        assert_same_result(runs / "micro", runs / "three", stage)


def test_offloading_changes_nothing(root: Path, runs: Path) -> None:
    copy_stages(runs / "micro", runs / "offload")
    said(make(root, runs, "offload", "ppo", "GPUS=2", "ZERO=2", "OFFLOAD=1"))
    assert_same_result(runs / "micro", runs / "offload", "ppo")


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to whoever asks for any."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as place:
            try:
                place.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def test_two_launchers_are_two_nodes(root: Path, runs: Path) -> None:
    copy_stages(runs / "micro", runs / "nodes")
    words = ("ppo", "GPUS=1", "ZERO=1", "NODES=2", f"MASTER=127.0.0.1:{free_port()}")
    nodes = [make(root, runs, "nodes", *words, f"NODE_RANK={rank}") for rank in (1, 0)]
    second, first = (said(node) for node in nodes)
    assert "next: make chat" in first
    assert "next: make chat" not in second
    assert_same_result(runs / "micro", runs / "nodes", "ppo")


@QUANTIZED
def test_two_processes_hold_a_4_bit_base_each(
    root: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nf4-two", "nf4-one"):
        copy_stages(runs / "micro", runs / name)
    said(make(root, runs, "nf4-two", "ppo", "GPUS=2", "ZERO=2", settings="model.precision=nf4"))
    monkeypatch.chdir(root)
    assert start("ppo", runs, "run.name=nf4-one", "ppo.export_merged=true", "model.precision=nf4") == 0
    assert_same_result(runs / "nf4-one", runs / "nf4-two", "ppo")
    assert require(runs / "nf4-two", "ppo").metrics != require(runs / "micro", "ppo").metrics

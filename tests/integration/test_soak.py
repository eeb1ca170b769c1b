"""`make soak` in short: a run killed while it saves, samples and trains, and told to end while it trains."""

import signal
from pathlib import Path

import pytest

from tests.integration.micro import CONFIG, copy_stages
from tests.soak import PHASES, Soak

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(root: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the run left alone and the killed one both find the SFT and the reward model."""
    monkeypatch.chdir(root)
    for name in ("straight", "killed"):
        copy_stages(runs / "micro", tmp_path / name)
    return tmp_path


def begin(folder: Path, *, num_iterations: int, num_processes: int = 1) -> Soak:
    """A soak whose uninterrupted run has gone through."""
    often = ("ppo.checkpoint_every_iterations=1", "ppo.evaluation.best_of=[]")
    settings = (f"ppo.num_iterations={num_iterations}", *often)
    soak = Soak(folder, CONFIG, settings, seed=0, num_processes=num_processes)
    soak.run_straight()
    assert set(soak.seconds) == set(PHASES)
    return soak


def test_a_run_killed_in_every_phase_ends_as_the_one_left_alone(folder: Path) -> None:
    soak = begin(folder, num_iterations=8)
    for phase in PHASES:
        assert soak.strike(phase)
    assert soak.strike("training", signal.SIGTERM)
    soak.finish()
    assert soak.statuses == {-signal.SIGKILL: 3, 75: 1}
    assert soak.differences() == []
    assert soak.wandb_problems() == []


def test_so_does_one_of_two_processes_when_either_is_killed(folder: Path) -> None:
    pytest.importorskip("deepspeed")
    soak = begin(folder, num_iterations=5, num_processes=2)
    assert soak.strike("saving")
    assert soak.strike("training")
    soak.finish()
    assert soak.blows.total() == 2
    assert soak.differences() == []
    assert soak.wandb_problems() == []

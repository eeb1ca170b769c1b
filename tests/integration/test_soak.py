"""`make soak` in short: a run killed while it saves, samples and trains, and told to end while it trains."""

import signal
from pathlib import Path

import pytest

from tests.integration.micro import CONFIG
from tests.soak import PHASES, Soak

pytestmark = pytest.mark.slow


def test_a_run_killed_in_every_phase_ends_as_the_one_left_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    short = ("ppo.num_iterations=8", "ppo.checkpoint_every_iterations=1", "ppo.evaluation.best_of=[]")
    soak = Soak(tmp_path, CONFIG, short, seed=0)
    soak.prepare()
    assert set(soak.seconds) == set(PHASES)
    for phase in PHASES:
        assert soak.strike(phase)
    assert soak.strike("training", signal.SIGTERM)
    soak.finish()
    assert soak.statuses == {-signal.SIGKILL: 3, 75: 1}
    assert soak.differences() == []
    assert soak.wandb_problems() == []

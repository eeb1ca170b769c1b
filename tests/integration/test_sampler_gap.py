"""A sampler that draws from another distribution than the one that is trained, in the middle of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf.sampling.engine
from rlhf.model.backbone import Backbone
from rlhf.runs import checkpoints
from rlhf.sampling.rollouts import Rollouts
from tests.integration.micro import assert_same_results, copy_stages, start

FORGETFUL_CALL = 3
"""The held-out responses before training are drawn first, then those of iterations 0 and 1."""
SETTINGS = ("ppo.checkpoint_every_iterations=4", "run.name=gap")


def test_a_sampler_that_forgets_ends_the_run_before_an_update_and_the_run_resumes(
    root: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    copy_stages(runs / "micro", runs / "gap")
    calls: list[int] = []
    drawn = rlhf.sampling.engine.sample
    next_hidden = Backbone.next_hidden

    def counted(*args: Any, **kwargs: Any) -> Rollouts:
        calls.append(1)
        return drawn(*args, **kwargs)

    def forgetful(self: Backbone, ids: torch.Tensor, mask: torch.Tensor, *rest: object) -> torch.Tensor:
        states = next_hidden(self, ids, mask, *rest)  # type: ignore[arg-type]
        return states * 1.05 if len(calls) == FORGETFUL_CALL and ids.shape[1] == 1 else states

    with monkeypatch.context() as patch:
        patch.setattr("ppo.rollout.sample", counted)
        patch.setattr(Backbone, "next_hidden", forgetful)
        assert start("ppo", runs, *SETTINGS) == 2
    said = capsys.readouterr().err
    assert "fp32 explains a difference of 0.001" in said
    assert "the last checkpoint is kept" in said
    kept = checkpoints.latest(runs / "gap" / "ppo")
    assert kept is not None
    assert kept.step == 1  # after iteration 0, in which nothing was wrong
    assert start("ppo", runs, *SETTINGS) == 0
    copy_stages(runs / "micro", runs / "straight")
    assert start("ppo", runs, "ppo.checkpoint_every_iterations=4", "run.name=straight") == 0
    assert_same_results(runs / "gap", runs / "straight", "ppo")


def test_a_wrong_sampler_is_found_before_the_first_iteration(
    root: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    copy_stages(runs / "micro", runs / "gap0")
    next_hidden = Backbone.next_hidden

    def forgetful(self: Backbone, ids: torch.Tensor, mask: torch.Tensor, *rest: object) -> torch.Tensor:
        states = next_hidden(self, ids, mask, *rest)  # type: ignore[arg-type]
        return states * 1.05 if ids.shape[1] == 1 else states

    monkeypatch.setattr(Backbone, "next_hidden", forgetful)
    assert start("ppo", runs, "run.name=gap0") == 2
    assert "Nothing was trained on these responses" in capsys.readouterr().err

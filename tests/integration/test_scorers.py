"""What a function of the user's does inside an iteration of PPO never costs the iterations before it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf.data import scorers
from rlhf.runs import checkpoints
from rlhf.runs.metrics import read_metrics
from tests.integration.micro import assert_same_weights, copy_stages, make_run, start

SCORER = """
import os
from pathlib import Path

calls = 0


def _fails(responses):
    # The reference's evaluation has 8 responses, an iteration 16 on all ranks together.
    global calls
    calls += 1
    down = Path(__file__).with_name("down")
    return down.exists() and calls > int(down.read_text()) and os.environ.get("RANK", "1") == "1"


def reward(prompts, responses):
    if _fails(responses):
        raise ConnectionError("the judge is away")
    return [len(text) / 10 for text in responses]


async def gold(prompts, responses):
    if _fails(responses):
        raise ConnectionError("the judge is away")
    return [None] + [len(text) / 10 for text in responses[1:]]
"""
SETTINGS = ("ppo.checkpoint_every_iterations=100", "ppo.sample_table_every=1")


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scorers, "PAUSES_SECONDS", (0.0, 0.0))
    path = tmp_path / "scorer.py"
    path.write_text(SCORER)
    return path


def logged(run: Path) -> dict[float, dict[str, float]]:
    """The metrics of every step, without times, on however many lines they were logged."""
    steps: dict[float, dict[str, float]] = {}
    for row in read_metrics(run / "ppo" / "metrics.jsonl"):
        values = {key: value for key, value in row.items() if not key.endswith(("_seconds", "_per_second"))}
        steps.setdefault(row["step"], {}).update(values)
    return steps


@pytest.mark.parametrize(("setting", "calls", "saved"), [("reward", 3, 2), ("evaluation.gold", 1, 2)])
def test_a_scorer_that_fails_costs_no_finished_iteration(
    runs: Path,
    tmp_path: Path,
    scorer: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    calls: int,
    saved: int,
) -> None:
    """Calls of the reward: the reference's evaluation, then each iteration; the gold's: each evaluation."""
    settings = [*SETTINGS, f"ppo.{setting}={scorer}:{setting.rpartition('.')[2]}"]
    for name in ("micro", "calm"):
        copy_stages(runs / "micro", tmp_path / name)
    (tmp_path / "down").write_text(str(calls))
    assert start("ppo", tmp_path, *settings) == 2
    error = capsys.readouterr().err
    assert "the judge is away" in error
    assert f"{saved} finished iterations are saved" in error
    found = checkpoints.latest(tmp_path / "micro" / "ppo")
    assert found is not None
    assert found.step == saved
    (tmp_path / "down").unlink()
    assert start("ppo", tmp_path, *settings) == 0
    assert start("ppo", tmp_path, *settings, "run.name=calm") == 0
    assert_same_weights(tmp_path / "calm", tmp_path / "micro", "ppo")
    assert logged(tmp_path / "calm") == logged(tmp_path / "micro")
    if setting != "reward":
        rows = read_metrics(tmp_path / "calm" / "ppo" / "metrics.jsonl")
        assert {row.get("ppo/heldout_num_gold_unscored") for row in rows} == {1.0, None}


@pytest.mark.parametrize("error", [RuntimeError, OSError, AssertionError, SystemExit])
def test_whatever_ends_an_iteration_the_ones_before_it_are_saved(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """A sample table that cannot be written, or a tracker that fails in a way of its own."""
    from rlhf.runs.tracker import Tracker

    copy_stages(runs / "micro", tmp_path / "micro")
    table = Tracker.table

    def fail(self: Tracker, key: str, columns: Any, rows: Any, step: int) -> None:
        if step == 3:
            raise error("broken")
        table(self, key, columns, rows, step)

    monkeypatch.setattr(Tracker, "table", fail)
    with pytest.raises(error):
        start("ppo", tmp_path, *SETTINGS)
    found = checkpoints.latest(tmp_path / "micro" / "ppo")
    assert found is not None
    assert found.step == 2


@pytest.mark.slow
def test_a_scorer_that_fails_on_one_rank_ends_all_with_what_was_finished(
    root: Path, runs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "scorer.py").write_text(SCORER)
    (tmp_path / "down").write_text("3")
    shutil.copytree(runs / "micro" / "sft", tmp_path / "two" / "sft")
    settings = " ".join([*SETTINGS, f"ppo.reward={tmp_path / 'scorer.py'}:reward"])
    make = make_run(root, tmp_path, "two", "ppo", "GPUS=2", settings=settings)
    said = make.communicate(timeout=600)[0]
    assert make.returncode == 2, said
    assert said.count("the judge is away), ") == 1, said  # once, not for each rank
    found = checkpoints.latest(tmp_path / "two" / "ppo")
    assert found is not None
    assert found.step == 2


def test_a_corrected_scorer_resumes_where_the_wrong_one_ended(
    runs: Path, tmp_path: Path, scorer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SETTINGS, f"ppo.reward={scorer}:reward"]
    copy_stages(runs / "micro", tmp_path / "micro", ["sft"])
    (tmp_path / "down").write_text("3")
    assert start("ppo", tmp_path, *settings) == 2
    scorer.write_text(SCORER.replace("return down.exists()", "return False and down.exists()"))
    assert start("ppo", tmp_path, *settings) == 2
    assert "input reward has changed" in capsys.readouterr().err
    assert start("ppo", tmp_path, *settings, "ppo.kl.coefficient=0.2", "--accept-scorer") == 2
    assert start("ppo", tmp_path, *settings, "--accept-scorer") == 0
    assert "warning: ppo: input reward has changed since this stage began" in capsys.readouterr().err
    rows = read_metrics(tmp_path / "micro" / "ppo" / "metrics.jsonl")
    assert [row["step"] for row in rows if "ppo/num_steps" in row] == [1, 2, 3, 4]
    assert start("ppo", tmp_path, *settings) == 0
    scorer.write_text(SCORER)
    assert start("ppo", tmp_path, *settings, "--accept-scorer") == 2

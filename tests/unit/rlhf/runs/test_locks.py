import os
import signal
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.runs.stage import StageRun, require
from tests.unit.rlhf.runs.stages import finish, make_recipe, opened, python


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

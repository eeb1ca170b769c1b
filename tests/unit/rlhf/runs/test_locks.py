import os
import re
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


READER = """
stage = StageRun.open(make_recipe(Path(sys.argv[1])), sys.argv[2], {}, reads=["ppo"], sections=())
print('held', flush=True)
input()
"""


def test_a_refused_process_leaves_no_number_and_the_holders_are_named(tmp_path: Path) -> None:
    """Two processes read the stage; a third, which would read it too, is refused its own folder and ends."""
    recipe = make_recipe(tmp_path)
    finish(recipe)
    holders = [python(READER, tmp_path, name) for name in ("a", "b")]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert "held" in holder.stdout.readline()
        refused = python(READER, tmp_path, "a")
        _, said = refused.communicate(timeout=60)
        assert f"process {holders[0].pid} on" in said
        with pytest.raises(UserError) as caught:
            opened(recipe, clean=True)
        named = re.findall(r"process (\d+) on", caught.value.what)
        assert set(named) == {str(holder.pid) for holder in holders}
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait(timeout=60)
        with pytest.raises(UserError) as caught:
            opened(recipe, clean=True)
        assert re.findall(r"process (\d+) on", caught.value.what) == [str(holders[1].pid)]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate(timeout=60)
    opened(recipe, clean=True).close()


def test_a_lock_that_only_a_child_still_holds_says_so(tmp_path: Path) -> None:
    code = """
import os, time
run = opened(make_recipe(Path(sys.argv[1])))
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)
"""
    parent = python(code, tmp_path)
    assert parent.stdout is not None
    child = int(parent.stdout.readline().split()[-1])
    try:
        parent.wait(timeout=60)
        with pytest.raises(UserError, match=f"which has ended, still holds it .process {parent.pid} on"):
            opened(make_recipe(tmp_path))
    finally:
        os.kill(child, signal.SIGKILL)
        parent.communicate(timeout=60)

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf import launch
from rlhf.launch import relaying, report
from rlhf.preemption import Preempted


@pytest.mark.parametrize(
    ("exit_codes", "status"),
    [
        ({0: 75, 1: 75}, 75),
        ({0: 75, 1: 2}, 2),
        ({0: 75, 1: -9}, 137),
        ({0: -9, 1: 1}, 1),
        ({0: -9, 1: -15}, 137),
        ({0: 70, 1: -6}, 134),
        ({0: 70, 1: -15}, 70),
    ],
    ids=str,
)
def test_the_status_is_of_the_rank_that_failed_and_not_of_those_that_were_told_to_end(
    exit_codes: dict[int, int], status: int
) -> None:
    assert report(exit_codes, "ppo") == status


def test_a_rank_that_was_killed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    report({0: 75, 1: -9}, "ppo")
    assert capsys.readouterr().err == "ppo: rank 1 was killed by signal 9; the other ranks were ended\n"


@pytest.mark.parametrize(
    ("exit_codes", "told", "status"),
    [
        ({0: 75, 1: 75}, signal.SIGTERM, 75),
        ({0: -15, 1: -15}, signal.SIGTERM, 75),
        ({0: 75, 1: -10}, signal.SIGUSR1, 75),
        ({0: 75, 1: -9}, signal.SIGTERM, 75),
        ({0: 70, 1: 75}, signal.SIGTERM, 75),
        ({0: 2, 1: 75}, signal.SIGTERM, 2),
        ({0: 130, 1: 130}, signal.SIGINT, 130),
        ({0: 130, 1: -2}, signal.SIGINT, 130),
        ({0: -1, 1: -1}, signal.SIGHUP, 129),
    ],
    ids=str,
)
def test_after_a_signal_the_status_is_what_it_asks_for_unless_a_rank_made_a_mistake(
    exit_codes: dict[int, int], told: signal.Signals, status: int
) -> None:
    assert report(exit_codes, "ppo", told=told) == status


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, also where a shell has started the tests in the background and ignores it for them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "raised"), [(15, Preempted), (2, KeyboardInterrupt)])
def test_a_signal_before_any_rank_is_there_ends_the_launcher(
    number: int, raised: type[BaseException], interruptible: None
) -> None:
    with relaying(), pytest.raises(raised):
        os.kill(os.getpid(), number)


COUNT = """
import signal, sys
count = 0
def receive(number, frame):
    global count
    count += 1
signal.signal(signal.SIGTERM, receive)
print("ready", flush=True)
sys.stdin.read()
raise SystemExit(count)
"""


def test_ranks_get_a_signal_once_however_often_it_comes() -> None:
    pipe = subprocess.PIPE
    rank = subprocess.Popen([sys.executable, "-c", COUNT], stdin=pipe, stdout=pipe, start_new_session=True)
    other = subprocess.Popen(["sleep", "60"])  # no leader of a session: not a rank
    with relaying() as relay, rank, other:
        assert rank.stdout is not None
        rank.stdout.readline()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert rank.stdin is not None
        rank.stdin.close()  # lets it end
        assert rank.wait(60) == 1
        assert relay.told == signal.SIGTERM
        assert other.poll() is None
        other.kill()


def test_ranks_that_do_not_end_in_time_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_SHUTDOWN_SECONDS", 1)
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    rank = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    with relaying(), rank:
        assert rank.stdout is not None
        rank.stdout.readline()
        os.kill(os.getpid(), signal.SIGTERM)
        assert rank.wait(60) == -signal.SIGKILL


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with relaying() as relay:
            os.kill(os.getpid(), signal.SIGHUP)
        assert relay.told is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"])
def test_the_launchers_settings_are_those_that_users_find_in_configs(root: Path, name: str) -> None:
    users = root / "configs" / "accelerate" / f"{name}.yaml"
    assert (launch.CONFIGS / f"{name}.yaml").read_text() == users.read_text()


def test_configs_hold_no_settings_that_the_launcher_does_not_know(root: Path) -> None:
    names = [
        {path.name for path in folder.iterdir()} for folder in (launch.CONFIGS, root / "configs/accelerate")
    ]
    assert names[0] == names[1]

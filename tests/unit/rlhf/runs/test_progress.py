import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.runs import progress as terminal
from rlhf.runs.progress import print_result, progress

ROOT = Path(__file__).resolve().parents[4]


def test_short_work_is_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], "reading")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in progress(range(100), desc="ppo"):
        now[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ppo: 10/100, 10 s so far, 1 min 30 s left"
    assert len(lines) == 100 // terminal.PLAIN_SECONDS + 1
    assert lines[-1] == "ppo: 100/100, 1 min 40 s in all"


def test_work_that_was_long_in_beginning_does_not_say_when_it_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress(64, "sft") as counter:
        now[0] += 60
        counter.update(0)
    assert capsys.readouterr().err == "sft: 0/64, 1 min 00 s so far\n"


def test_progress_counts_by_hand_and_ends_with_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress(64, "scoring") as counter:
        counter.note(loss=0.1)
        now[0] += 3600
        counter.update(32)
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 32/64, 1 h 00 min so far, 1 h 00 min left",
        "scoring: 32/64, 1 h 00 min in all",
    ]
    with progress(iter("ab"), "reading") as bar:
        now[0] += 11
        bar.update()
    assert capsys.readouterr().err.splitlines()[0] == "reading: 1, 11 s so far"


def test_a_terminal_gets_a_bar() -> None:
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    code = """
import time
from rlhf.runs.progress import progress
for _ in progress(range(3), "ppo"): time.sleep(0.6)
"""
    with os.fdopen(other, "w") as stderr:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stderr=stderr)
    shown = ""
    with contextlib.suppress(OSError):  # what a closed terminal answers
        while chunk := os.read(main, 10_000):
            shown += chunk.decode()
    os.close(main)
    assert "3/3" in shown
    assert "\r" in shown


def test_a_result_fits_its_width_and_the_command_is_never_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    command = "make ppo CONFIG=" + "configs/" * 20 + "recipe.yaml"
    rows = [("reward", "0.10 → 0.90"), ("model [bold]", "runs/" + "x" * 100 + "/ppo/model")]
    print_result("ppo", rows, next_command=command)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"next: {command}"
    assert max(len(line) for line in lines[:-1]) <= 80
    text = "\n".join(lines)
    assert "0.10 → 0.90" in text
    assert "model [bold]" in text
    assert "\x1b" not in text


def test_a_result_can_be_printed_in_ascii() -> None:
    code = (
        "from rlhf.runs.progress import print_result; print_result('ppo', [('reward', '0.1')], 'make chat')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, env=environment
    )
    assert b"make chat" in done.stdout

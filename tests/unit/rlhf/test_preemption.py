import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlhf import preemption
from rlhf.commands.process import run_command
from rlhf.errors import EXIT_PREEMPTED
from rlhf.preemption import Preempted, check, deferred, listen, requested


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_ends_a_command_with_a_status_of_its_own(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(argv: object) -> int:
        send(number)
        raise AssertionError("it went on")

    assert run_command(work, []) == EXIT_PREEMPTED == 75
    assert signal.Signals(number).name in capsys.readouterr().err


def test_a_deferred_block_is_finished_first() -> None:
    done = []

    def work() -> None:
        with deferred():
            with deferred():
                send()
                done.append("inner")
            done.append("outer")
            assert requested()
        raise AssertionError("it went on")

    with listen(), pytest.raises(Preempted):
        work()
    assert done == ["inner", "outer"]


def test_a_signal_is_that_of_the_block_and_of_nothing_after_it() -> None:
    with listen():
        with pytest.raises(Preempted), deferred():
            send()
        assert requested()
    assert not requested()


def test_saving_after_the_signal_is_interrupted_neither_by_it_nor_by_a_second_one() -> None:
    saved = []
    with listen():
        with pytest.raises(Preempted):
            send()
        with deferred():
            send(signal.SIGUSR1)
            saved.append(True)
    assert saved


def test_an_error_in_a_deferred_block_passes_as_it_is() -> None:
    def fail() -> None:
        with deferred():
            send()
            raise RuntimeError("full")

    with listen(), pytest.raises(RuntimeError, match="full"):
        fail()


def test_an_exception_that_was_lost_comes_again_at_the_next_check(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swallows:
        def __del__(self) -> None:
            send()

    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: lost.append(report.exc_type))
    with listen():
        Swallows()
        assert lost == [Preempted]
        with pytest.raises(Preempted):
            check()


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with listen():
        assert [signal.getsignal(number) for number in preemption.SIGNALS] != before
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
    with listen():
        assert not requested()  # a new command knows nothing of the last one's


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with listen():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


HANGING = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from rlhf import preemption
from rlhf.errors import UserError
from rlhf.commands.process import run_command
preemption.PATIENCE_SECONDS = 0.3

def hang():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    threading.Thread(target=report_wait, args=[threading.get_native_id(), ctypes.addressof(mutex)]).start()
    libc.pthread_mutex_lock(mutex)  # in C, for ever, whatever signals come

def report_wait(thread, address):
    # Linux names the system call that a thread is in, and its arguments.
    call = Path(f"/proc/self/task/{thread}/syscall")
    while hex(address) not in call.read_text().split():
        time.sleep(0.01)
    print("at work", flush=True)

def save():
    Path("saved").touch()
"""
"""A program with a main thread that no signal reaches."""


def told_to_end(folder: Path, work: str) -> tuple[int, str]:
    """Exit status and stderr of a command that does `work`, and gets SIGTERM once it is at it."""
    root = Path(__file__).resolve().parents[3]
    command = subprocess.Popen(
        [sys.executable, "-c", f"{HANGING}\ndef work(argv):\n{work}\nsys.exit(run_command(work, []))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        assert command.stdout is not None
        assert command.stdout.readline() == "at work\n"
        command.send_signal(signal.SIGTERM)
        return command.wait(60), command.communicate()[1]
    finally:
        command.kill()


def test_a_main_thread_that_hears_no_signal_is_saved_and_ended_by_another(tmp_path: Path) -> None:
    status, said = told_to_end(tmp_path, "    with preemption.last_resort(save): hang()")
    assert status == EXIT_PREEMPTED
    assert (tmp_path / "saved").exists()
    assert "ended by SIGTERM" in said


def test_what_cannot_be_saved_by_the_other_thread_is_said(tmp_path: Path) -> None:
    full = (
        "    def save(): raise UserError('the disk is full')\n    with preemption.last_resort(save): hang()"
    )
    assert told_to_end(tmp_path, full) == (2, "the disk is full\n")


def test_a_deferred_block_is_given_its_time_by_the_other_thread_too(tmp_path: Path) -> None:
    work = """
    with preemption.deferred():
        print("at work", flush=True)
        time.sleep(1.5)
        save()
    """
    status, _ = told_to_end(tmp_path, work)
    assert status == EXIT_PREEMPTED
    assert (tmp_path / "saved").exists()


def test_a_signal_to_a_forked_child_is_not_the_parents(tmp_path: Path) -> None:
    work = """
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        os.kill(os.getpid(), signal.SIGTERM)
    os.waitpid(child, 0)
    time.sleep(1)
    save()
    print("at work", flush=True)
    time.sleep(60)
    """
    told_to_end(tmp_path, work)
    assert (tmp_path / "saved").exists()


def test_a_process_whose_parent_is_killed_saves_and_ends(tmp_path: Path) -> None:
    """The parent dies by SIGKILL, as a launcher does when memory runs out; nobody else sends a signal."""
    child = (
        "import pathlib, sys, time\n"
        "from rlhf import preemption\n"
        "with preemption.listen():\n"
        "    try:\n"
        "        preemption.end_with_parent()\n"
        "        print('at work', flush=True)\n"  # in the block: from here on the signal may come
        "        time.sleep(600)\n"
        "    except preemption.Preempted:\n"
        "        pathlib.Path(sys.argv[1]).touch()\n"
    )
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    saved = tmp_path / "saved"
    command = [sys.executable, "-c", parent, child, str(saved)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.kill()
        process.stdout.read()  # until the child, who holds the pipe too, has ended
    assert saved.exists()


def test_a_second_signal_says_nothing_more() -> None:
    program = (
        "import os, signal, time\n"
        "from rlhf import preemption\n"
        "with preemption.listen(lambda name, save: None):\n"
        "    try:\n"
        "        with preemption.deferred():\n"
        "            for _ in range(3):\n"
        "                os.kill(os.getpid(), signal.SIGTERM)\n"
        "                time.sleep(0.2)\n"
        "    except preemption.Preempted:\n"
        "        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == "SIGTERM: saving, then ending\n"

import os
import signal
import sys
import threading

import pytest

from rlhf import preemption
from rlhf.errors import EXIT_PREEMPTED, run_command
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

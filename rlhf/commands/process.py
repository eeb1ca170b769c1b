"""What every command runs in: errors as text, signals that save, and ranks that do not all speak at once."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NoReturn

from rlhf import optional, preemption
from rlhf.environment import has_ranks, is_rank0
from rlhf.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_RANK_FAILURE, EXIT_USER_ERROR, UserError

_RESUMES = "; the same command resumes from the last checkpoint"


def run_command(
    main: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None = None,
    *,
    resumes: bool | Callable[[Sequence[str]], bool] = True,
) -> int:
    """Run a command's `main` and return its exit status.

    `resumes` says that running it again continues from a checkpoint, if need be by its arguments.

    2 after a `UserError`, 75 after SIGTERM or SIGUSR1, 130 after Ctrl-C. Among ranks, an error that all of
    them meet is printed once, and an error of one of them with its rank.

    Without `argv` the command is all that this process is for, and after a signal the process ends at once.
    """
    arguments = sys.argv[1:] if argv is None else argv
    advice = _RESUMES if (resumes(arguments) if callable(resumes) else resumes) else ""
    try:
        return _with_signals(lambda: main(arguments), advice, exits=argv is None)
    except UserError as error:
        _print_error(str(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        if is_rank0():
            print(f"interrupted{advice}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python would print this error once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def exit_now(status: int) -> NoReturn:
    """End the process without the interpreter's shutdown: slow, and it may wait for ranks that failed."""
    with suppress(OSError, ValueError):  # whoever read our output may have ended first
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _with_signals(work: Callable[[], int], advice: str, *, exits: bool) -> int:
    """What `work` returns, or the status after a signal; further signals change nothing until the end."""
    with preemption.listen(partial(_end_for_main, advice)):
        try:
            with optional.only_needed(), _as_rank():
                return work()
        except preemption.Preempted as notice:
            _print_preempted(str(notice), advice)
            if exits:
                exit_now(EXIT_PREEMPTED)
            return EXIT_PREEMPTED


def _end_for_main(advice: str, signal_name: str, save: Callable[[], None]) -> NoReturn:
    """Save and end after a signal, in a second thread: the main thread did not end in time."""
    status = 1
    try:
        save()
        _print_preempted(signal_name, advice)
        status = EXIT_PREEMPTED
    except UserError as error:
        print(error, file=sys.stderr)
        status = EXIT_USER_ERROR
    finally:
        if status == 1:
            traceback.print_exc()
        exit_now(status)


def _print_preempted(signal_name: str, advice: str) -> None:
    if is_rank0():
        print(f"ended by {signal_name}{advice}", file=sys.stderr)


@contextmanager
def _as_rank() -> Iterator[None]:
    """Inside the block this process is one of its launcher's ranks, if there are several."""
    if "LOCAL_RANK" in os.environ:
        preemption.end_with_parent()
    if not has_ranks():
        yield
        return
    from rlhf.parallel.failures import is_rank_failure
    from rlhf.parallel.world import world

    try:
        world().rendezvous()
        if not is_rank0():
            # For good: what all ranks compute alike is printed once.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        yield
    except UserError:
        raise
    except Exception as error:  # any kind: the traceback is printed as it is, but once and with the rank
        if is_rank_failure(error):
            if preemption.requested():
                # While this rank was unwinding after a signal, another one ended for the same reason.
                preemption.stop()
            exit_now(EXIT_RANK_FAILURE)  # the launcher says which rank failed, and how
        _print_error(traceback.format_exc().rstrip())
        raise SystemExit(1) from None


def _print_error(text: str) -> None:
    if has_ranks():
        from rlhf.parallel.failures import print_error_once

        print_error_once(text)
    else:
        print(text, file=sys.stderr)

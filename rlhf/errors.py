"""The one exception that a command prints bare, and the wrapper that does so.

`UserError` stands for a mistake that the reader of the message can repair: a missing file, a malformed
record, a contradiction in the settings. Anything else that escapes is our own mistake and keeps its
traceback.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from rlhf import preemption

EXIT_USER_ERROR = 2
EXIT_LOST = 70
"""Of a rank that cannot go on because another is gone."""
EXIT_PREEMPTED = 75
"""After SIGTERM or SIGUSR1: the state is saved, and the same command goes on (EX_TEMPFAIL of sysexits.h)."""
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """What is wrong, where, and the way out.

    `str()` of it is the text a user sees:

        rankings.jsonl, line 41: completion 3 has no rank (4 completions, 3 ranks).
          Give every completion a rank, or "F" for a failed one.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}\n  {fix}" if fix else text)


def has_ranks() -> bool:
    """Whether this process is one of several that were launched together."""
    return "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def is_first_rank() -> bool:
    """Whether this process writes and speaks: alone, or as rank 0 of several."""
    return not has_ranks() or os.environ["RANK"] == "0"


def run_command(
    main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None, *, resumes: bool = True
) -> int:
    """Run a command's `main`, which goes on where it was ended if it `resumes`; returns its exit status.

    2 after a `UserError`, 75 after SIGTERM or SIGUSR1, 130 after Ctrl-C. Among ranks, what all run into
    is said once, and what one of them runs into with its rank.

    Without `argv` the command is all that this process is for, and after a signal that ends at once.
    """
    try:
        return _obeying_signals(lambda: main(sys.argv[1:] if argv is None else argv), leaves=argv is None)
    except UserError as error:
        _say(str(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last checkpoint" if resumes else ""
        if is_first_rank():
            print(f"interrupted{goes_on}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _obeying_signals(work: Callable[[], int], *, leaves: bool) -> int:
    """What `work` returns, or the status after a signal; further ones change nothing until the end."""
    with preemption.listen(_end_for_main):
        try:
            with _among_ranks():
                return work()
        except preemption.Preempted as notice:
            _say_preempted(str(notice))
            if leaves:
                leave(EXIT_PREEMPTED)
            return EXIT_PREEMPTED


def leave(status: int) -> NoReturn:
    """End at once. The interpreter's farewells take long, and may wait for ranks that are gone."""
    with suppress(OSError, ValueError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _end_for_main(signal_name: str, save: Callable[[], None]) -> NoReturn:
    """Save and end after a signal, in a thread of its own: the main one has not come to its end."""
    status = 1
    try:
        save()
        _say_preempted(signal_name)
        status = EXIT_PREEMPTED
    except UserError as error:
        print(error, file=sys.stderr)
        status = EXIT_USER_ERROR
    finally:
        if status == 1:
            traceback.print_exc()
        leave(status)


def _say_preempted(signal_name: str) -> None:
    if is_first_rank():
        print(f"ended by {signal_name}; the same command goes on from the last checkpoint", file=sys.stderr)


@contextmanager
def _among_ranks() -> Iterator[None]:
    """Inside the block this process is known to the other ranks, if there are any."""
    if "LOCAL_RANK" in os.environ:
        preemption.end_with_parent()
    if not has_ranks():
        yield
        return
    from rlhf.distributed import is_loss, team

    try:
        team().meet()
        yield
    except UserError:
        raise
    except Exception as error:  # any: the traceback is printed as it is, but once and with the rank
        if is_loss(error) and preemption.requested():
            preemption.stop()  # what is unwound after a signal runs into the others' end
        if is_loss(error):  # the launcher says of which rank, and how it ended
            leave(EXIT_LOST)
        _say(traceback.format_exc().rstrip())
        raise SystemExit(1) from None


def _say(text: str) -> None:
    if has_ranks():
        from rlhf.distributed import say_error

        say_error(text)
    else:
        print(text, file=sys.stderr)

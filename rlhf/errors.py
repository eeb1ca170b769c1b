"""The one exception that a command prints bare, and the wrapper that does so.

`UserError` stands for a mistake that the reader of the message can repair: a missing file, a malformed
record, a contradiction in the settings. Anything else that escapes is our own mistake and keeps its
traceback.
"""

import os
import sys
from collections.abc import Callable, Sequence

from rlhf import preemption

EXIT_USER_ERROR = 2
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


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and return its exit status.

    2 after a `UserError`, 75 after SIGTERM or SIGUSR1, 130 after Ctrl-C.
    """
    try:
        with preemption.listen():
            return main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except preemption.Preempted as notice:
        print(f"ended by {notice}; the same command goes on from the last checkpoint", file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1

"""The error that a command prints without a traceback, and the exit statuses of all commands.

`UserError` stands for a mistake that the reader of the message can correct: a missing file, a malformed
record, a contradiction in the settings. Anything else that escapes is our own mistake and keeps its
traceback.
"""

from typing import Self

EXIT_USER_ERROR = 2
EXIT_RANK_FAILURE = 70
"""Of a rank that cannot continue because another rank has failed."""
EXIT_PREEMPTED = 75
"""After SIGTERM or SIGUSR1: the state is saved, and the same command resumes (EX_TEMPFAIL of sysexits.h)."""
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """What is wrong, where, and the way out.

    `str()` of it is the text a user sees:

        rankings.jsonl, line 41: completion 3 has no rank (4 completions, 3 ranks).
          Give every completion a rank, or "F" for a failed one.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}\n  {fix}" if fix else text)

    def at(self, where: str, *, fix: str | None = None) -> Self:
        """The same error in another place, such as the line of the file that held the bad value.

        `fix` replaces the way out, where the place allows a better one.
        """
        return type(self)(self.what, where=where, fix=fix or self.fix)

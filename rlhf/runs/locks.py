"""Who works in a stage's folder and who reads it: advisory locks, which the system releases with the process.

One file, `.lock`, serves both: a stage at work locks its own folder alone (flock, exclusive), and the folders
of the stages that it reads together with other readers (shared). What the file holds is for messages only: a
line for each process that holds the lock, written once it does and blanked before it lets go. A process that
is killed leaves its line behind, so a line counts only while its process lives.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError

LOCK = ".lock"

_LINE = re.compile(r"process (\d+) on (\S+) .+")
_UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True)
class _Held:
    """A lock that this process holds, and where in the file its line stands."""

    descriptor: int
    start: int
    length: int

    def release(self) -> None:
        with contextlib.suppress(OSError):  # a full disk keeps nobody from letting go
            os.pwrite(self.descriptor, b" " * (self.length - 1) + b"\n", self.start)
        os.close(self.descriptor)


class Locks:
    """The locks of one stage at work."""

    def __init__(self) -> None:
        self._held: list[_Held] = []

    @property
    def held(self) -> bool:
        return bool(self._held)

    def work_in(self, folder: Path, *, does: str = "is running this stage") -> None:
        """Make the folder and lock it for this process alone; `does` is what others are told of it.

        Raises:
            UserError: another process works in it or reads it, or it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise no_folder(folder, error) from None
        self._take(descriptor, folder, fcntl.LOCK_EX, does)

    def read(self, folder: Path, *, reader: str) -> None:
        """Keep the finished stage in `folder` from being made again while the stage `reader` works with it.

        Raises:
            UserError: it is being made again.
        """
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno in _UNWRITABLE:
                return  # whoever cannot write there cannot make it again either
            raise no_folder(folder, error) from None
        self._take(descriptor, folder, fcntl.LOCK_SH, f"is running `{reader}` on what this stage has made")

    def close(self) -> None:
        """Unlock all folders."""
        while self._held:
            self._held.pop().release()

    def _take(self, descriptor: int, folder: Path, kind: int, does: str) -> None:
        line = f"process {os.getpid()} on {socket.gethostname()} {does}\n".encode()
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if kind == fcntl.LOCK_EX:
                os.ftruncate(descriptor, 0)  # nobody else holds it, so every line is of the past
            start = _append(folder / LOCK, line)
        except BlockingIOError:
            holder = _holders(os.pread(descriptor, 100_000, 0).decode(errors="replace"))
            os.close(descriptor)
            raise UserError(
                holder,
                where=str(folder),
                fix="Wait until it ends, or work in another folder (a stage: `run.name=...`).",
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise no_folder(folder, error) from None
        self._held.append(_Held(descriptor, start, len(line)))


def _append(path: Path, line: bytes) -> int:
    """Add a line at the end of the file, in one step for all readers; returns where it begins."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, line)
        return os.lseek(descriptor, 0, os.SEEK_CUR) - len(line)
    finally:
        os.close(descriptor)


def _holders(text: str) -> str:
    """The processes that hold a lock, in words, from what its file says."""
    found = [line.strip() for line in text.splitlines() if line.strip()]
    living = [line for line in found if _may_live(line)]
    if living:
        return "; ".join(living)
    if found:  # the lock goes with the last process that has it, and a child may outlive its parent
        return f"a process that was started by another, which has ended, still holds it ({found[-1]})"
    return "another process is running this stage"


def _may_live(line: str) -> bool:
    """Whether the process of a line may still be there: certain only on its own machine."""
    match = _LINE.fullmatch(line)
    if match is None or match[2] != socket.gethostname():
        return True
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not _is_zombie(int(match[1]))


def _is_zombie(process: int) -> bool:
    """Whether a process has ended and only waits for its parent to ask how; known on Linux alone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["Z"]


def no_folder(folder: Path, error: OSError) -> UserError:
    """What to say when the system refuses a folder."""
    return UserError(
        f"cannot use this folder ({error.strerror})",
        where=str(folder),
        fix="Put runs elsewhere (`run.folder=...`), use another run name (`run.name=...`), or correct it.",
    )

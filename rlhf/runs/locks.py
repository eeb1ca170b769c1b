"""Who works in a stage's folder and who reads it: advisory locks, which the system releases with the process.

One file, `.lock`, serves both: a stage at work locks its own folder alone (flock, exclusive), and the folders
of the stages that it reads together with other readers (shared). What the file holds is for messages only.
"""

import errno
import fcntl
import os
import socket
from pathlib import Path

from rlhf.errors import UserError

LOCK = ".lock"

_UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Locks:
    """The locks of one stage at work."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    @property
    def held(self) -> bool:
        return bool(self._descriptors)

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
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _take(self, descriptor: int, folder: Path, kind: int, does: str) -> None:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} {does}".encode(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 300, 0).decode(errors="replace")
            os.close(descriptor)
            raise UserError(
                holder or "another process is running this stage",
                where=str(folder),
                fix="Wait until it ends, or work in another folder (a stage: `run.name=...`).",
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise no_folder(folder, error) from None
        self._descriptors.append(descriptor)


def no_folder(folder: Path, error: OSError) -> UserError:
    """What to say when the system refuses a folder."""
    return UserError(
        f"cannot use this folder ({error.strerror})",
        where=str(folder),
        fix="Put runs elsewhere (`run.folder=...`), use another run name (`run.name=...`), or correct it.",
    )

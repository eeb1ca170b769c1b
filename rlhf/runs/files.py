"""Files that are complete or not there: atomic writes, hashes, and what to say when the disk refuses.

Whatever is being written has a name that ends in `.partial` until one rename makes it appear; a leftover of
that name is never read.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rlhf.errors import UserError

PARTIAL = ".partial"
OLD = ".old" + PARTIAL
"""What `replace` calls the old one until the new one is in place."""

_REFUSALS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_hash(folder: Path) -> str:
    """One SHA-256 over the names and contents of all files under `folder`, wherever it is stored."""
    return names_hash(
        {path.relative_to(folder).as_posix(): sha256_file(path) for path in files_under(folder)}
    )


def names_hash(hashes: Mapping[str, str]) -> str:
    """SHA-256 of the lines that `sha256sum` prints for these files, ordered by name."""
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def files_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write_atomic(path: Path, text: str) -> None:
    """Write a text file that appears complete or not at all, also after a power cut."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def replace(new: Path, final: Path) -> None:
    """Rename `new` to `final`, a file or a folder, in the place of what is there.

    A folder cannot be exchanged in one step: for a moment there is only `<final>.old.partial`.
    """
    old = final.with_name(final.name + OLD)
    remove(old)
    if final.exists():
        final.rename(old)
    new.rename(final)
    sync(final.parent)
    remove(old)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it; nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's contents, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring a folder and all that is in it to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


@contextmanager
def storing(where: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a `UserError`; any other error passes."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else _os_error(str(error))
        if number not in _REFUSALS:
            raise
        assert number is not None
        raise UserError(
            f"cannot store the results ({os.strerror(number)})",
            where=str(where),
            fix="Make room or correct the permissions, then run the same command again: "
            "it resumes from the last checkpoint.",
        ) from error


def _os_error(text: str) -> int | None:
    """The system's error number in a message of safetensors, which has no other place for it.

    torch's own writer of checkpoints gives none; it fails in the middle of a file when the disk is full.
    """
    if "inline_container.cc" in text or "PytorchStreamWriter" in text:
        return errno.ENOSPC
    found = re.search(r"\(os error (\d+)\)", text)
    return int(found[1]) if found else None

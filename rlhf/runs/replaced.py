"""`replaced/`: what `--clean` sets aside, so that a refused input does not cost the old results.

A process may die at any line here. So the files are renamed one by one, in an order in which the folder that
they leave, and the one that they come to, is never taken for a finished stage that lacks a file.
"""

from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.files import PARTIAL, remove, storing, sync
from rlhf.runs.locks import LOCK, no_folder
from rlhf.runs.manifest import MANIFEST, STAGE_FILE

REPLACED = "replaced"
MAX_NAMED = 5
"""The most files or differences that an error names."""

_NOT_SET_ASIDE_WITH_OTHERS = frozenset({LOCK, STAGE_FILE, MANIFEST, REPLACED})


def check_unused(folder: Path) -> None:
    """A folder without stage.json is not ours to write into, or to delete, unless it is empty.

    Raises:
        UserError: there are files in it, or it cannot be read.
    """
    try:
        names = {path.name for path in folder.iterdir() if path.suffix != PARTIAL}
    except FileNotFoundError:
        return
    except OSError as error:
        raise no_folder(folder, error) from None
    unknown = sorted(names - {LOCK, REPLACED})
    if unknown:
        raise UserError(
            f"the folder holds files that no stage has made ({', '.join(unknown[:MAX_NAMED])})",
            where=str(folder),
            fix="Move it away, or use another run name (`run.name=...`).",
        )


def set_aside(folder: Path) -> None:
    """Move the stage's files out of the way: first what says it is finished, last what says it is ours.

    Raises:
        UserError: the folder is not a stage's, or the system refuses.
    """
    if not (folder / STAGE_FILE).exists():
        check_unused(folder)
        return
    replaced = folder / REPLACED
    with storing(folder):
        others = [path.name for path in folder.iterdir() if path.name not in _NOT_SET_ASIDE_WITH_OTHERS]
        if replaced.is_dir():  # what is here has published nothing: what came before it stays set aside
            for name in (*others, STAGE_FILE):
                remove(folder / name)
            return
        replaced.mkdir()
        for name in (MANIFEST, *others, STAGE_FILE):
            if (folder / name).exists():
                (folder / name).rename(replaced / name)
        sync(folder)


def repair(folder: Path) -> None:
    """Put back what a process was setting aside when it died.

    Where the stage began again after that, both results have their own stage.json, and both stay.
    """
    if not ((folder / STAGE_FILE).exists() and (folder / REPLACED / STAGE_FILE).exists()):
        put_back(folder)


def put_back(folder: Path) -> None:
    """Undo `set_aside`: first what says it is ours, last what says it is finished."""
    replaced = folder / REPLACED
    if not replaced.is_dir():
        return
    with storing(folder):
        others = [path.name for path in replaced.iterdir() if path.name not in (STAGE_FILE, MANIFEST)]
        for name in (STAGE_FILE, *others, MANIFEST):
            if (replaced / name).exists():
                (replaced / name).rename(folder / name)
        replaced.rmdir()
        sync(folder)

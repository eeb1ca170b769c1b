"""The day that a run's chat templates write, where they write one: the day on which the run began.

Templates of Llama 3.2, gpt-oss and others put today's date into every prompt. The first stage of a run to
begin notes its day in `stage.json`; this process, later stages and a resumed stage render with that one.
`model.date` in the recipe names another. One process works for one run, so the day is the whole process's.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rlhf.runs.manifest import STAGE_FILE
from rlhf.runs.stage_file import StageFile


@dataclass
class _Frozen:
    day: date | None = None
    is_given: bool = False


_frozen = _Frozen()


def run_date() -> date:
    """The day of this process's run; today, where no run has begun."""
    return _frozen.day or date.today()


def given_date() -> date | None:
    """The day that the recipe names, if it does: templates that ask for `date_string` are told it."""
    return _frozen.day if _frozen.is_given else None


def freeze_date(day: str | None, *, given: str | None = None) -> None:
    """Render with this day from now on: `given`, the recipe's, before the run's own. None: today."""
    chosen = given or day
    _frozen.day = date.fromisoformat(chosen) if chosen else None
    _frozen.is_given = given is not None


def date_of_stage(folder: Path) -> str:
    """The day of the stage in `folder`: when it began, else when the run's first stage began, or today.

    A stage file of before days were noted was written on the day that the stage began.
    """
    own = _noted(folder / STAGE_FILE)
    if own is not None:
        return own
    return date_of_run(folder.parent) or date.today().isoformat()


def date_of_run(run_folder: Path) -> str | None:
    """The earliest day that a stage of this run notes."""
    days = (_noted(path) for path in sorted(run_folder.glob(f"*/{STAGE_FILE}")))
    return min((day for day in days if day is not None), default=None)


def _noted(path: Path) -> str | None:
    if not path.is_file():
        return None
    return StageFile.read(path).date or date.fromtimestamp(path.stat().st_mtime).isoformat()

"""A stage's run in Weights & Biases, which is optional.

W&B may be missing, logged out, offline or broken, and the stage still runs to its end: the first failure is
printed, and the run ends there.
"""

import importlib.util
import os
import secrets
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rlhf.errors import EXIT_PREEMPTED, UserError
from rlhf.runs.files import write_atomic
from rlhf.runs.manifest import json_value
from rlhf.runs.metrics import MetricsRow, SampleTable
from rlhf.settings.recipe import Recipe

Mode = Literal["online", "offline", "off"]

_WANDB_ID = "wandb_id"
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 300.0
_PREEMPTED_SECONDS = 3.0
_QUIET: dict[str, Any] = {"silent": True}


class WandbRun:
    """One stage's W&B run, or nothing. No method raises: the first failure is printed and ends it."""

    def __init__(self, recipe: Recipe, stage: str, folder: Path, mode: Mode) -> None:
        self.url: str | None = None
        self._folder = folder
        self._run: Any = None
        self._offline_folder: Path | None = None
        if mode == "online":
            self._attempt(lambda: self._init(recipe, stage, "online"), otherwise="continuing offline")
            mode = "offline"
        if mode == "offline" and self._run is None:
            self._attempt(lambda: self._init(recipe, stage, "offline"))

    def replay(self, rows: Sequence[MetricsRow], tables: Sequence[SampleTable]) -> None:
        """Send what an earlier process has logged, as far as W&B does not have it yet.

        An offline run is thereby written again as a whole, and takes the place of that process's file, whose
        last seconds may be missing.
        """
        steps = {row["step"] for row in rows} | {table.step for table in tables}
        for step in sorted(steps):
            for row in rows:
                if row["step"] == step:
                    self.log({key: value for key, value in row.items() if key != "step"}, step)
            for table in tables:
                if table.step == step:
                    self.table(table)

    def log(self, metrics: MetricsRow, step: int) -> None:
        """Send a row of metrics, unless W&B has that step already."""
        if self._run is not None and step >= self._run.starting_step:
            self._attempt(lambda: self._run.log(metrics, step=step))

    def table(self, table: SampleTable) -> None:
        """Send a table of samples, unless W&B has that step already."""
        if self._run is not None and table.step >= self._run.starting_step:

            def send() -> None:
                import wandb

                sent = wandb.Table(columns=[*table.columns], data=table.rows, allow_mixed_types=True)
                self._run.log({table.key: sent}, step=table.step)

            self._attempt(send)

    def finish(self, summary: Mapping[str, float | str], *, exit_code: int) -> None:
        """End the run; prints how to upload one that was offline."""
        if self._run is not None:
            self._attempt(lambda: self._run.summary.update(json_value(summary)))
        if self._run is not None:
            if exit_code == EXIT_PREEMPTED:
                self._end_soon()
            else:
                self._attempt(lambda: self._end(exit_code))
            self._run = None
        if self._offline_folder is not None:
            print(f"W&B was offline; upload with: wandb sync {shlex.quote(str(self._offline_folder))}")
            self._offline_folder = None

    def _init(self, recipe: Recipe, stage: str, mode: Literal["online", "offline"]) -> None:
        import wandb

        run_id = _wandb_id(self._folder)
        if mode == "offline":
            _remove_superseded(self._folder / "wandb", run_id)
        run = wandb.init(
            mode=mode,
            project=recipe.tracking.project,
            name=f"{recipe.run.name}/{stage}",
            group=recipe.run.name,
            job_type=stage,
            id=run_id,
            resume="allow",
            dir=str(self._folder.resolve()),
            config=recipe.resolved,
            allow_val_change=True,
            settings=wandb.Settings(
                **_QUIET,
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                console="off",
                symlink=False,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        self._run = run
        if mode == "online":
            self.url = run.url
        else:
            self._offline_folder = self._folder / "wandb" / Path(run.settings.sync_dir).name

    def _end(self, exit_code: int) -> None:
        import wandb

        self._run.finish(exit_code=exit_code)
        wandb.teardown(exit_code=exit_code)  # `finish` alone returns before an offline run's file is written

    def _end_soon(self) -> None:
        """Give W&B a moment; what it does not get in that time is sent when the stage resumes."""
        self._attempt(lambda: self._run.mark_preempting())
        ending = threading.Thread(
            target=lambda: self._attempt(lambda: self._end(EXIT_PREEMPTED)), daemon=True
        )
        ending.start()
        ending.join(_PREEMPTED_SECONDS)
        if ending.is_alive():
            print("warning: W&B does not come to an end; leaving without it", file=sys.stderr)

    def _attempt(self, action: Callable[[], object], *, otherwise: str = "continuing without it") -> None:
        failure = _failure(action)
        if failure is not None:
            print(f"warning: W&B failed ({failure}); {otherwise}", file=sys.stderr)
            self._run = None
            _failure(_tear_down)


def wandb_mode(setting: str) -> Mode:
    """What `tracking.wandb` means here and now. Asks nobody, on the terminal or over the network.

    Raises:
        UserError: W&B is asked for and is not installed, or is to be online and nobody is logged in.
    """
    asked = os.environ.get("WANDB_MODE", "") if setting == "auto" else ""
    if setting == "off" or asked == "disabled":
        return "off"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read on import: no crash reports to W&B
    if importlib.util.find_spec("wandb") is None:
        if setting == "auto":
            return "off"
        raise UserError(
            "W&B is not installed",
            where=f"tracking.wandb={setting}",
            fix="Install it (pip install wandb), or set tracking.wandb=off.",
        )
    if setting == "offline" or asked in ("offline", "dryrun"):
        return "offline"
    if _logged_in():
        return "online"
    if setting == "auto":
        return "offline"
    raise UserError(
        "nobody is logged in to W&B on this machine",
        where="tracking.wandb=online",
        fix="Run `wandb login`, or set tracking.wandb=offline (upload later) or off.",
    )


def _logged_in() -> bool:
    found: list[bool] = []

    def ask() -> None:
        import wandb

        wandb.setup(settings=wandb.Settings(mode="online", **_QUIET))
        found.append(wandb.login(prompt=False, verify=False))

    failure = _failure(ask)
    if failure is not None:
        print(f"warning: W&B cannot use the login that it found ({failure})", file=sys.stderr)
    return found == [True]


def _tear_down() -> None:
    import wandb

    wandb.teardown(exit_code=1)


def _wandb_id(folder: Path) -> str:
    """The stage's W&B run id: made once, so that a resumed stage continues its run."""
    path = folder / _WANDB_ID
    if not path.exists():
        write_atomic(path, secrets.token_hex(8) + "\n")
    return path.read_text(encoding="utf-8").strip()


def _remove_superseded(folder: Path, run_id: str) -> None:
    """Delete this run's local files that were never uploaded: the new one will hold all that they hold."""
    for path in folder.glob(f"*run-*-{run_id}"):
        if not any(path.glob("*.synced")):
            shutil.rmtree(path)


def _failure(action: Callable[[], object]) -> str | None:
    """Call into wandb; returns None, or in one line what went wrong."""
    # The one place that catches everything: the client of a remote service, whose exceptions have no common
    # base, must not end hours of training with any of them.
    try:
        action()
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None

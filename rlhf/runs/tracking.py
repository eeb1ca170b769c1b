"""Metrics of a stage: `metrics.jsonl` always, and the same numbers in Weights & Biases.

`metrics.jsonl` holds one JSON object a line, `{"step": 12, "ppo/reward_mean": 0.41, ...}`, appended as soon
as it is known. Steps never decrease; the lines of one step are one row, in which no key occurs twice. A
number that is not finite is null, in W&B too. Keys are defined in docs/metrics.md.

Sample tables lie in `samples/<stage>.<name>-<step>.jsonl`, one object a row.

W&B is a guest: it may be missing, logged out, offline or broken, and the stage still runs to its end.
"""

import importlib.util
import json
import os
import re
import secrets
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rlhf.environment import is_rank0
from rlhf.errors import EXIT_PREEMPTED, UserError
from rlhf.preemption import Preempted
from rlhf.runs.files import storing, write_atomic
from rlhf.runs.manifest import json_value
from rlhf.runs.progress import Progress, print_result, progress
from rlhf.settings.recipe import Recipe

__all__ = [
    "METRICS",
    "METRIC_KEY",
    "Progress",
    "Tracker",
    "print_result",
    "progress",
    "read_metrics",
    "track",
]

METRICS = "metrics.jsonl"
METRIC_KEY = re.compile(r"(?:sft|reward|ppo|labeling)/[a-z0-9_]+")

_SAMPLES = "samples"
_WANDB_ID = "wandb_id"
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 300.0
_PREEMPTED_SECONDS = 3.0

_Mode = Literal["online", "offline", "off"]

Row = dict[str, Any]
Table = tuple[str, list[str], list[list[Any]]]
"""Key, columns, rows."""


class Tracker:
    """Writes the metrics and sample tables of one stage; used as a context manager.

    `resume_step` is the step of the checkpoint that the stage goes on from: what was logged after it is cut
    off, and what is logged at that step once more is passed over. None begins the metrics anew.

    Raises:
        UserError: `tracking.wandb` cannot be had, `metrics.jsonl` is damaged, or the disk is full.
    """

    def __init__(self, recipe: Recipe, stage: str, folder: Path, *, resume_step: int | None) -> None:
        self._stage, self._folder = stage, folder
        self._step = -1 if resume_step is None else resume_step
        mode = _wandb_mode(recipe.tracking.wandb)
        with storing(folder / METRICS):
            rows = _cut_metrics(folder / METRICS, resume_step)
            tables = _cut_tables(folder / _SAMPLES, resume_step)
            self._file = (folder / METRICS).open("a", encoding="utf-8", newline="\n", buffering=1)
        self._before_resume = {key for row in rows if row["step"] == resume_step for key in row}
        self._seen: set[str] = set()
        self._wandb = _Wandb(recipe, stage, folder, mode)
        self._wandb.replay(
            rows, {step: [_read_table(path) for path in paths] for step, paths in tables.items()}
        )

    @property
    def url(self) -> str | None:
        """Address of the W&B run, if it is online."""
        return self._wandb.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Preempted):
            self._close({}, exit_code=EXIT_PREEMPTED)
        else:
            self._close({}, exit_code=0 if kind is None else 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line of metrics. Several lines may belong to one step, with different keys.

        Raises:
            UserError: the disk is full.
        """
        assert all(METRIC_KEY.fullmatch(key) for key in metrics), f"not a metric's name: {sorted(metrics)}"
        self._advance(step)
        row = {key: _number(value) for key, value in metrics.items() if key not in self._before_resume}
        assert not self._seen & row.keys(), f"logged twice at step {step}: {sorted(self._seen & row.keys())}"
        self._seen |= row.keys()
        if row:
            with storing(self._folder / METRICS):
                self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
            self._wandb.log(row, step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Keep a table of samples, under a key such as `ppo/rollouts`.

        Raises:
            UserError: the disk is full.
        """
        assert METRIC_KEY.fullmatch(key), key
        self._advance(step)
        plain = [json_value(list(row)) for row in rows]
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in plain]
        folder = self._folder / _SAMPLES
        with storing(folder):
            folder.mkdir(exist_ok=True)
            path = folder / f"{key.replace('/', '.')}-{step:06d}.jsonl"
            write_atomic(path, "".join(f"{line}\n" for line in lines))
        self._wandb.table(key, columns, plain, step)

    def finish(self, summary: Mapping[str, float | str]) -> None:
        """End the stage's W&B run with final figures, such as `artifact_sha256`; prints how to upload it."""
        self._close(summary, exit_code=0)

    def _advance(self, step: int) -> None:
        assert step >= self._step, f"step {step} after step {self._step}"
        if step > self._step:
            self._step, self._seen, self._before_resume = step, set(), set()

    def _close(self, summary: Mapping[str, float | str], *, exit_code: int) -> None:
        if not self._file.closed:
            with storing(self._folder / METRICS):
                self._file.close()
            self._wandb.finish(summary, exit_code=exit_code)


class _Unheard(Tracker):
    """The tracker of the other ranks: the first one writes what all of them know."""

    def __init__(self) -> None:
        pass

    @property
    def url(self) -> None:
        return None

    def __exit__(self, *raised: object) -> None:
        pass

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        pass

    def finish(self, summary: Mapping[str, float | str]) -> None:
        pass


def track(recipe: Recipe, stage: str, folder: Path, *, resume_step: int | None) -> Tracker:
    """The `Tracker` of a stage on rank 0, and one that writes nothing on the others."""
    return Tracker(recipe, stage, folder, resume_step=resume_step) if is_rank0() else _Unheard()


def read_metrics(path: Path) -> list[Row]:
    """The lines of a `metrics.jsonl`. A last line without its end, left by a killed process, is passed over.

    Raises:
        UserError: another line is damaged.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError):
            raise UserError(
                "not a line of metrics", where=f"{path}, line {number}", fix="Mend or delete that line."
            ) from None
        rows.append(row)
    return rows


class _Wandb:
    """One stage's W&B run, or nothing. No method raises: the first failure is said and ends it."""

    def __init__(self, recipe: Recipe, stage: str, folder: Path, mode: _Mode) -> None:
        self.url: str | None = None
        self._folder = folder
        self._run: Any = None
        self._offline_folder: Path | None = None
        if mode == "online":
            self._attempt(lambda: self._init(recipe, stage, "online"), otherwise="going on offline")
            mode = "offline"
        if mode == "offline" and self._run is None:
            self._attempt(lambda: self._init(recipe, stage, "offline"))

    def replay(
        self, rows: list[Row], tables: Mapping[int, list[tuple[str, list[str], list[list[Any]]]]]
    ) -> None:
        """Send what an earlier process has logged, as far as W&B does not have it yet.

        An offline run is thereby written anew as a whole, and takes the place of that process's file, whose
        last seconds may be missing.
        """
        for step in sorted({*tables, *(row["step"] for row in rows)}):
            for row in rows:
                if row["step"] == step:
                    self.log({key: value for key, value in row.items() if key != "step"}, step)
            for key, columns, values in tables.get(step, []):
                self.table(key, columns, values, step)

    def log(self, metrics: Row, step: int) -> None:
        if self._run is not None and step >= self._run.starting_step:
            self._attempt(lambda: self._run.log(metrics, step=step))

    def table(self, key: str, columns: Sequence[str], rows: list[list[Any]], step: int) -> None:
        if self._run is not None and step >= self._run.starting_step:
            import wandb

            self._attempt(
                lambda: self._run.log(
                    {key: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)}, step=step
                )
            )

    def finish(self, summary: Mapping[str, float | str], *, exit_code: int) -> None:
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
        """Give W&B a moment; what it does not get in that is sent when the stage goes on."""
        self._attempt(lambda: self._run.mark_preempting())
        ending = threading.Thread(
            target=lambda: self._attempt(lambda: self._end(EXIT_PREEMPTED)), daemon=True
        )
        ending.start()
        ending.join(_PREEMPTED_SECONDS)
        if ending.is_alive():
            print("warning: W&B does not come to an end; leaving without it", file=sys.stderr)

    def _attempt(self, action: Callable[[], object], *, otherwise: str = "going on without it") -> None:
        failure = _failure(action)
        if failure is not None:
            import wandb

            print(f"warning: W&B failed ({failure}); {otherwise}", file=sys.stderr)
            self._run = None
            _failure(lambda: wandb.teardown(exit_code=1))


_QUIET: dict[str, Any] = {"silent": True}


def _wandb_mode(setting: str) -> _Mode:
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
    import wandb

    found: list[bool] = []

    def ask() -> None:
        wandb.setup(settings=wandb.Settings(mode="online", **_QUIET))
        found.append(wandb.login(prompt=False, verify=False))

    failure = _failure(ask)
    if failure is not None:
        print(f"warning: W&B cannot use the login that it found ({failure})", file=sys.stderr)
    return found == [True]


def _wandb_id(folder: Path) -> str:
    """The stage's W&B run id: made once, so that a resumed stage goes on with its run."""
    path = folder / _WANDB_ID
    if not path.exists():
        write_atomic(path, secrets.token_hex(8) + "\n")
    return path.read_text(encoding="utf-8").strip()


def _remove_superseded(folder: Path, run_id: str) -> None:
    """Delete this run's local files that were never uploaded: the new one will hold all that they hold."""
    for path in folder.glob(f"*run-*-{run_id}"):
        if not any(path.glob("*.synced")):
            shutil.rmtree(path)


def _cut_metrics(path: Path, resume_step: int | None) -> list[Row]:
    """Cut off the lines after `resume_step`, or all of them; returns those that stay."""
    rows = [] if resume_step is None else [row for row in read_metrics(path) if row["step"] <= resume_step]
    write_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return rows


def _cut_tables(folder: Path, resume_step: int | None) -> dict[int, list[Path]]:
    """Delete the tables after `resume_step`, or all of them; returns those that stay, by step."""
    kept: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        step = int(path.stem.rpartition("-")[2])
        if resume_step is None or step > resume_step:
            path.unlink()
        else:
            kept.setdefault(step, []).append(path)
    return kept


def _read_table(path: Path) -> Table:
    key = path.stem.rpartition("-")[0].replace(".", "/")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return key, list(rows[0]) if rows else [], [list(row.values()) for row in rows]


def _number(value: Any) -> float | None:
    number = json_value(value)
    assert number is None or isinstance(number, int | float), f"not a number: {value!r}"
    return number


def _failure(action: Callable[[], object]) -> str | None:
    """Call into wandb; returns None, or in one line what went wrong."""
    # The one place that catches everything: the client of a remote service, whose exceptions have no common
    # base, must not end hours of training with any of them.
    try:
        action()
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None

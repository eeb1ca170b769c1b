"""What a stage logs: into its own files always (rlhf.runs.metrics), and the same into Weights & Biases."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlhf.environment import is_rank0
from rlhf.errors import EXIT_PREEMPTED
from rlhf.preemption import Preempted
from rlhf.runs.files import storing
from rlhf.runs.manifest import json_value
from rlhf.runs.metrics import METRIC_KEY, METRICS, SAMPLES, SampleTable, cut_metrics, cut_tables
from rlhf.runs.wandb_run import WandbRun, wandb_mode
from rlhf.settings.recipe import Recipe


class Tracker:
    """Writes the metrics and sample tables of one stage; used as a context manager.

    `resume_step` is the step of the checkpoint that the stage resumes from: what was logged after it is cut
    off, and what is logged at that step once more is skipped. None begins the metrics again.

    Raises:
        UserError: `tracking.wandb` cannot be had, `metrics.jsonl` is damaged, or the disk is full.
    """

    def __init__(self, recipe: Recipe, stage: str, folder: Path, *, resume_step: int | None) -> None:
        self._folder = folder
        self._step = -1 if resume_step is None else resume_step
        mode = wandb_mode(recipe.tracking.wandb)
        with storing(folder / METRICS):
            rows = cut_metrics(folder / METRICS, resume_step)
            tables = cut_tables(folder / SAMPLES, resume_step)
            self._file = (folder / METRICS).open("a", encoding="utf-8", newline="\n", buffering=1)
        self._before_resume = {key for row in rows if row["step"] == resume_step for key in row}
        self._seen: set[str] = set()
        self._wandb = WandbRun(recipe, stage, folder, mode)
        self._wandb.replay(rows, tables)

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
        table = SampleTable(key, list(columns), [json_value(list(row)) for row in rows], step)
        with storing(self._folder / SAMPLES):
            table.write(self._folder / SAMPLES)
        self._wandb.table(table)

    def finish(self, summary: Mapping[str, float | str]) -> None:
        """End the stage's W&B run with final metrics and `artifact_sha256`; prints how to upload it."""
        self._close(summary, exit_code=0)

    def _advance(self, step: int) -> None:
        assert step >= self._step, f"step {step} after step {self._step}"
        if step > self._step:
            self._step = step
            self._seen = set()
            self._before_resume = set()

    def _close(self, summary: Mapping[str, float | str], *, exit_code: int) -> None:
        if not self._file.closed:
            with storing(self._folder / METRICS):
                self._file.close()
            self._wandb.finish(summary, exit_code=exit_code)


class NullTracker(Tracker):
    """The tracker of the other ranks, which writes nothing: rank 0 writes what all of them know."""

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
    return Tracker(recipe, stage, folder, resume_step=resume_step) if is_rank0() else NullTracker()


def _number(value: Any) -> float | None:
    number = json_value(value)
    assert number is None or isinstance(number, int | float), f"not a number: {value!r}"
    return number

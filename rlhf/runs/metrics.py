"""The files that a stage's metrics are in, read back and cut where a resumed stage begins.

`metrics.jsonl` holds one JSON object a line, `{"step": 12, "ppo/reward_mean": 0.41, ...}`, appended as soon
as it is known. Steps never decrease; the lines of one step are one row, in which no key occurs twice. A
number that is not finite is null. Keys are defined in docs/metrics.md.

Sample tables are stored in `samples/<stage>.<name>-<step>.jsonl`, one object a row.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.runs.files import write_atomic

METRICS = "metrics.jsonl"
METRIC_KEY = re.compile(r"(?:sft|reward|ppo|labeling)/[a-z0-9_]+")
SAMPLES = "samples"

MetricsRow = dict[str, Any]


@dataclass(frozen=True)
class SampleTable:
    """A table of samples under a key such as `ppo/rollouts`; its values are plain JSON."""

    key: str
    columns: list[str]
    rows: list[list[Any]]
    step: int

    def write(self, folder: Path) -> None:
        """Write it into the stage's folder of samples."""
        folder.mkdir(exist_ok=True)
        lines = []
        for row in self.rows:
            values = dict(zip(self.columns, row, strict=True))
            lines.append(json.dumps(values, ensure_ascii=False) + "\n")
        path = folder / f"{self.key.replace('/', '.')}-{self.step:06d}.jsonl"
        write_atomic(path, "".join(lines))

    @staticmethod
    def read(path: Path) -> "SampleTable":
        """The table that `write` wrote. Of one without rows the columns are not known."""
        name, _, step = path.stem.rpartition("-")
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        columns = list(rows[0]) if rows else []
        return SampleTable(name.replace(".", "/"), columns, [list(row.values()) for row in rows], int(step))


def read_metrics(path: Path) -> list[MetricsRow]:
    """The lines of a `metrics.jsonl`. A last line without its end, left by a killed process, is skipped.

    Raises:
        UserError: another line is damaged.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[MetricsRow] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError):
            raise UserError(
                "not a line of metrics", where=f"{path}, line {number}", fix="Correct or delete that line."
            ) from None
        rows.append(row)
    return rows


def cut_metrics(path: Path, resume_step: int | None) -> list[MetricsRow]:
    """Cut off the lines after `resume_step`, or all of them; returns those that stay.

    Raises:
        UserError: a line is damaged.
    """
    rows: Sequence[MetricsRow] = () if resume_step is None else read_metrics(path)
    kept = [row for row in rows if resume_step is not None and row["step"] <= resume_step]
    write_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept))
    return kept


def cut_tables(folder: Path, resume_step: int | None) -> list[SampleTable]:
    """Delete the tables after `resume_step`, or all of them; returns those that stay."""
    kept = []
    for path in sorted(folder.glob("*.jsonl")):
        step = int(path.stem.rpartition("-")[2])
        if resume_step is None or step > resume_step:
            path.unlink()
        else:
            kept.append(SampleTable.read(path))
    return kept

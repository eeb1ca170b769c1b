"""Reads the file of an offline W&B run back: what would be uploaded, and no more.

The file is a LevelDB log (records cut into 32 KiB blocks) of protocol buffers after a header of 7 bytes.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_OWN_KEYS = frozenset({"_step", "_timestamp", "_runtime", "_wandb"})


@dataclass
class OfflineRun:
    """What one offline run holds."""

    id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row a step, `step` first, without W&B's own columns and without tables."""
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """(key, step) → {"columns": [...], "data": [[...]]}, read from the file that the history names."""
    exit_code: int | None = None
    kinds: set[str] = field(default_factory=set)
    """The kinds of record: `environment` is the one that tells of code, command line and machine."""


def read_offline_run(stage_folder: Path) -> OfflineRun:
    """The only offline run that lies in a stage's folder."""
    files = sorted(stage_folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1, f"{len(files)} offline runs in {stage_folder}"
    run = OfflineRun()
    for data in _records(files[0].read_bytes()):
        record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        _add(run, record, files[0].parent / "files")
    return run


def merge_steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl` as W&B keeps them: all lines of one step in one row."""
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        merged.setdefault(row["step"], {}).update(row)
    return list(merged.values())


def _add(run: OfflineRun, record: Any, files: Path) -> None:
    kind = record.WhichOneof("record_type")
    run.kinds.add(kind)
    if kind == "run":
        run.id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
        run.group, run.job_type = record.run.run_group, record.run.job_type
        run.config.update(_items(record.run.config.update))
    elif kind == "config":
        run.config.update(_items(record.config.update))
    elif kind == "history":
        row = _items(record.history.item)
        step = record.history.step.num
        plain = {key: value for key, value in row.items() if not _is_table(value)}
        if plain:
            run.history.append({"step": step, **plain})
        for key in row.keys() - plain.keys():
            run.tables[key, step] = json.loads((files / row[key]["path"]).read_text(encoding="utf-8"))
    elif kind == "summary":
        run.summary.update(_items(record.summary.update))
    elif kind == "exit":
        run.exit_code = record.exit.exit_code


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *groups, key = item.nested_key or [item.key]
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[key] = json.loads(item.value_json)
    return {key: value for key, value in found.items() if key not in _OWN_KEYS}


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and value.get("_type") == "table-file"


def _records(data: bytes) -> Iterator[bytes]:
    assert data[: len(_HEADER)] == _HEADER, "not a W&B file"
    position, parts = len(_HEADER), b""
    while position + 7 <= len(data):
        if _BLOCK - position % _BLOCK < 7:  # the rest of a block is padding
            position += _BLOCK - position % _BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        part = data[position + 7 : position + 7 + length]
        assert checksum == zlib.crc32(bytes([kind]) + part), f"damaged at byte {position}"
        position += 7 + length
        parts = part if kind in (_FULL, _FIRST) else parts + part
        if kind in (_FULL, _LAST):
            yield parts

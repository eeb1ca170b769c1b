"""What is made from a finished stage afterwards, by a step of its own that can be repeated at no cost.

`<stage>/<name>/` is written apart, brought to the disk and renamed; `<stage>/<name>.json`, written last, says
which model it was made from. A step that fails or is killed leaves neither, and the stage stays finished.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rlhf.runs.files import (
    PARTIAL,
    files_under,
    remove,
    replace,
    sha256_file,
    storing,
    sync_tree,
    write_atomic,
)
from rlhf.runs.locks import Locks
from rlhf.runs.manifest import MANIFEST, JsonFile, Manifest, json_value, require


class DerivedFile(JsonFile):
    """What `<name>.json` says of a folder that was made from a finished stage."""

    schema_version: Literal[1] = 1
    made_from: str
    """`artifact_sha256` of the stage."""
    outputs: dict[str, str]
    """File → SHA-256, named from the run folder."""
    output_bytes: dict[str, int]


def is_derived(stage: Manifest, name: str) -> bool:
    """Whether the folder `name` is there, whole, and made from what the stage published."""
    if any(path.startswith(f"{stage.stage}/{name}/") for path in stage.outputs):
        return True  # earlier versions published it together with the model
    record = stage.path(f"{name}.json")
    if not record.is_file():
        return False
    derived = DerivedFile.read(record)
    sizes = {
        path: (stage.folder.parent / path).stat().st_size
        for path in derived.output_bytes
        if (stage.folder.parent / path).is_file()
    }
    return derived.made_from == stage.artifact_sha256 and sizes == derived.output_bytes


def derive(stage: Manifest, name: str, write: Callable[[Path], None], *, metrics: Mapping[str, Any]) -> None:
    """Let `write` fill the folder `name` of a finished stage, which this process holds.

    `metrics` are added to those of the stage's manifest.

    Raises:
        UserError: no space, or no permission to write.
    """
    folder = stage.folder
    staging = folder / f"{name}{PARTIAL}"
    with storing(folder):
        remove(staging)
        remove(folder / f"{name}.json")
        try:
            staging.mkdir()
            write(staging)
            sync_tree(staging)
            replace(staging, folder / name)
        finally:
            remove(staging)
        files = {f"{stage.stage}/{p.relative_to(folder).as_posix()}": p for p in files_under(folder / name)}
        record = DerivedFile(
            made_from=stage.artifact_sha256,
            outputs={path: sha256_file(file) for path, file in files.items()},
            output_bytes={path: file.stat().st_size for path, file in files.items()},
        )
        with_metrics = stage.model_copy(update={"metrics": stage.metrics | json_value(metrics)})
        write_atomic(folder / MANIFEST, with_metrics.to_json())
        write_atomic(folder / f"{name}.json", record.to_json())


@contextmanager
def finished_stage(run_folder: Path, stage: str, *, reads: str) -> Iterator[Manifest]:
    """Inside the block this process holds a finished stage, and nobody makes the stage `reads` again.

    Raises:
        UserError: another process holds one of them, or one is not finished.
    """
    locks = Locks()
    try:
        locks.read(run_folder / reads, reader=stage)
        require(run_folder, reads)
        locks.work_in(run_folder / stage)
        yield require(run_folder, stage)
    finally:
        locks.close()

"""Labels that were exported: a folder with `manifest.json`, which names the file of records next to it.

A source of records may name the manifest instead of the file: then the file is known to be the one that was
exported, whole and unchanged.
"""

from pathlib import Path
from typing import Any, Literal

from rlhf.errors import UserError
from rlhf.runs.files import sha256_file
from rlhf.runs.manifest import MANIFEST, JsonFile


class ExportManifest(JsonFile):
    """What was exported, and from what. It has no time in it: the same labels give the same manifest."""

    schema_version: Literal[1] = 1
    kind: Literal["labels"] = "labels"
    records: str
    """The file of records, next to this one."""
    sha256: str
    num_records: int
    shape: Literal["rankings", "pairs"]
    labels: Literal["consensus", "all"]
    pseudonyms: bool
    """Whether labelers are named by pseudonyms."""
    last_event: int
    """Number of the newest event that the labels take into account."""
    policy: dict[str, Any]
    """The labeling project's policy."""
    metrics: dict[str, Any]


def is_manifest(path: Path) -> bool:
    return path.name == MANIFEST


def exported_records(path: Path) -> Path:
    """The file of records that belongs to an export's manifest.

    Raises:
        UserError: it is no such manifest, or the file is missing or not the one that was exported.
    """
    fix = "Export the labels again: python -m labeling export."
    try:
        manifest = ExportManifest.read(path)
    except UserError as error:
        raise error.at(str(path), fix=fix) from None
    records = path.parent / manifest.records
    if Path(manifest.records).name != manifest.records or not records.is_file():
        raise UserError(f"its file of records {manifest.records} is missing", where=str(path), fix=fix)
    if sha256_file(records) != manifest.sha256:
        raise UserError("this is not the file that its manifest describes", where=str(records), fix=fix)
    return records

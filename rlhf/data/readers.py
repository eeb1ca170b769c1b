"""Files and hub data sets → rows, each with its location.

JSON and CSV are read here and not by the `datasets` library, which would guess types (a prompt "NA" becomes
null, "007" a number), refuse lists such as [1, "F"], and lose the line number.
"""

import csv
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.data.exports import exported_records, is_manifest
from rlhf.errors import UserError
from rlhf.hub import check_hub
from rlhf.settings.groups import SourceSettings

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
COLUMNAR = (".csv", ".parquet")
MIXED = "{run}/preferences/mixed.jsonl"
"""The constitution's rankings and people's: made only where people's are named."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BOM = b"\xef\xbb\xbf"


def local_file(source: SourceSettings, run_folder: Path) -> Path | None:
    """The file that `source` names, or whose export's manifest it names; None for a hub data set.

    Raises:
        UserError: it is a folder, of an unknown format, or missing; or it has changed since its export.
    """
    path = Path(source.path.replace("{run}", str(run_folder)))
    fix = f"Give a file that ends in {', '.join(FORMATS)}, or a hub id owner/name."
    if path.is_dir():
        raise UserError("this is a folder, not a file", where=str(path), fix=fix)
    if path.is_file() and is_manifest(path):
        return exported_records(path)
    if path.is_file():
        if path.suffix.lower() in FORMATS:
            return path
        raise UserError(f"files that end in `{path.suffix}` cannot be read", where=str(path), fix=fix)
    if path.suffix.lower() not in FORMATS and _HUB_ID.fullmatch(source.path):
        return None
    raise UserError("there is no such file", where=str(path), fix=_made_by_the_run(source.path) or fix)


def _made_by_the_run(path: str) -> str | None:
    """The way to a file that the run makes itself."""
    if "{run}" not in path:
        return None
    fix = "A stage of this run makes it: run that one first."
    if path == MIXED:
        fix += " `make preferences` does where `labeling.constitution.preferences.people` names rankings."
    return fix


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Location in the file, and content, of each row; lines of JSON are still bytes (see `parse_json`).

    Raises:
        UserError: the file as a whole is malformed.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _csv_rows(path)
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".json" and _starts_with_bracket(path):
        return _json_list_rows(path)
    return _json_line_rows(path)


def hub_rows(source: SourceSettings) -> Iterator[tuple[str, Any]]:
    """Location and content of each row of a hub data set.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    check_hub(source.path, kind="dataset", revision=source.revision, where=source.path)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"this data set cannot be loaded from the hub ({_first_line(error)})",
            where=source.path,
            fix="Check `path`, `name`, `split`, `revision`, the network, and whether HF_HUB_OFFLINE is set; "
            "or give the path of a local file.",
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def parse_json(content: bytes) -> Any:
    """The JSON value that `content` is.

    Raises:
        UserError: it is not JSON in UTF-8.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise UserError("this is not UTF-8 text", fix="Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        fix = "A .jsonl file holds one JSON object a line; a .json file may hold one list of objects instead."
        raise UserError(f"not valid JSON at {at}: {error.msg}", fix=fix) from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"not usable JSON: {error}", fix="Correct or remove the record.") from None
    except RecursionError:
        raise UserError("JSON that is nested too deeply", fix="Correct or remove the record.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, each key once: of two values one would vanish."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the key `{twice}` is there twice in one object", fix="Keep one of the two.")
    return values


def _starts_with_bracket(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(_BOM).lstrip().startswith(b"[")


def _json_line_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            # Without its end: JSON that breaks off would else break off "in line 2".
            content = (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")
            if content.strip():
                yield f"line {number}", content


def _json_list_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        values = parse_json(path.read_bytes().removeprefix(_BOM))
    except UserError as error:
        raise error.at(str(path)) from None
    for number, value in enumerate(values, start=1):
        yield f"record {number}", value


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    fix = "Give every row one cell per column; separate cells by commas, and quote text that holds any."
    where = "the header"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            if len(set(names)) != len(names) or "" in names:
                raise UserError(
                    "a column has no name, or two have the same", where=f"{path}, {where}", fix=fix
                )
            where = "row 1"
            for number, row in enumerate(reader, start=1):
                where = f"row {number}"
                if [str(cell).removeprefix("\ufeff").strip() for cell in row.values()] == list(names):
                    raise UserError(
                        f"the header is there again, at line {reader.line_num}",
                        where=f"{path}, {where}",
                        fix="These are several files one after the other: remove the header's second copy, "
                        "or name each file as a source.",
                    )
                if None in row or None in row.values():
                    raise UserError("not one cell per column", where=f"{path}, {where}", fix=fix)
                yield where, row
                where = f"row {number + 1}"
    except UnicodeDecodeError:
        raise UserError(
            "this is not UTF-8 text", where=f"{path}, {where}", fix="Save the file as UTF-8."
        ) from None
    except csv.Error as error:
        raise UserError(f"not valid CSV: {error}", where=f"{path}, {where}", fix=fix) from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import datasets

    with tempfile.TemporaryDirectory() as cache:  # the library writes a lock file even when it only streams
        try:
            rows = datasets.load_dataset(
                "parquet", data_files=str(path), split="train", streaming=True, cache_dir=cache
            )
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", row
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            what = f"not readable as Parquet ({_first_line(error)})"
            raise UserError(what, where=str(path), fix="Write the file again.") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

"""Sources → records: reading, mixing by weight, splitting by prompt, with a count of every row.

A source is a .jsonl, .json, .csv or .parquet file (`rlhf.data.readers`), or a data set on the Hugging Face
hub; `rlhf.data.schemas` knows how a row becomes a record.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlhf.data.columns import UnusableRowError, transcript_as_messages
from rlhf.data.counts import READ, RecordCounts
from rlhf.data.messages import kind
from rlhf.data.prompt_form import NOTE, TURNS_NOTE, Form, as_conversation, form_of, split_key
from rlhf.data.readers import COLUMNAR, file_rows, hub_rows, local_file, parse_json
from rlhf.data.records import Demonstration, Prompt, Ranking
from rlhf.data.schemas import DEMONSTRATIONS, PROMPTS, RANKINGS, Row, RowConverter, Schema
from rlhf.errors import UserError
from rlhf.hub import local_model_folder
from rlhf.runs.files import sha256_file, tree_hash
from rlhf.settings.groups import SourceSettings

__all__ = [
    "RecordCounts",
    "check_source",
    "model_identity",
    "read_demonstrations",
    "read_prompts",
    "read_rankings",
    "source_fingerprints",
    "split_by_prompt",
]

R = TypeVar("R", bound=Prompt | Demonstration | Ranking)

BEYOND_LIMIT = "beyond the limit"
REPEATED = "answers that begin with their whole prompt"
LEFT_OUT = "left out by weights"


def read_demonstrations(
    sources: Sequence[SourceSettings], *, seed: int, run_folder: Path, form: Form | Literal["auto"] = "text"
) -> tuple[list[Demonstration], RecordCounts]:
    """The demonstrations of all sources, mixed by weight, in the order of the sources.

    `form` says what becomes of prompts that are text, where a source does not: they stay, or become messages
    (`auto`: if any prompt of these sources is a conversation). See rlhf.data.prompt_form.

    Raises:
        UserError: a missing or malformed file or record (with its location), or nothing that can be used.
    """
    return _read_all(sources, DEMONSTRATIONS, seed=seed, run_folder=run_folder, form=form)


def read_rankings(
    sources: Sequence[SourceSettings], *, seed: int, run_folder: Path, form: Form | Literal["auto"] = "text"
) -> tuple[list[Ranking], RecordCounts]:
    """The rankings of all sources, mixed by weight, in the order of the sources.

    Raises:
        UserError: as `read_demonstrations`.
    """
    return _read_all(sources, RANKINGS, seed=seed, run_folder=run_folder, form=form)


def read_prompts(
    sources: Sequence[SourceSettings], *, seed: int, run_folder: Path, form: Form | Literal["auto"] = "text"
) -> tuple[list[Prompt], RecordCounts]:
    """The prompts of all sources, mixed by weight, in the order of the sources.

    Raises:
        UserError: as `read_demonstrations`.
    """
    return _read_all(sources, PROMPTS, seed=seed, run_folder=run_folder, form=form)


def source_fingerprints(name: str, sources: Sequence[SourceSettings], *, run_folder: Path) -> dict[str, str]:
    """What identifies the data: `<name>.<i>` → SHA-256 of a local file, or "hub:<id>@<revision>".

    Where a file is stored is no part of it: moved data are the same data. Needs no network.

    Raises:
        UserError: a local file is missing, or is of an unknown format.
    """
    prints = {}
    for number, source in enumerate(sources):
        path = local_file(source, run_folder)
        if path is None:
            prints[f"{name}.{number}"] = f"hub:{source.path}@{source.revision or 'main'}"
        else:
            prints[f"{name}.{number}"] = sha256_file(path)
    return prints


def check_source(
    source: SourceSettings, schemas: Sequence[Schema[Any]], *, run_folder: Path, is_there: bool
) -> None:
    """Check a source without reading it: its columns and templates, and if it `is_there` its first row.

    Of a hub data set and of Parquet no row is looked at: that needs the network, or takes seconds.

    Raises:
        UserError: as when it is read.
    """
    RowConverter(schemas, source, columnar=False)
    path = local_file(source, run_folder) if is_there else None
    if path is None or path.suffix.lower() == ".parquet":
        return
    converter = RowConverter(schemas, source, columnar=path.suffix.lower() in COLUMNAR)
    for where, raw in file_rows(path):
        try:
            converter.record(_row(raw), where)
        except UnusableRowError:
            continue
        except UserError as error:
            raise error.at(f"{path}, {where}") from None
        return
    raise UserError("there is no record in it that can be used", where=str(path), fix="Name another file.")


def model_identity(path: str, revision: str | None) -> str:
    """What identifies a model: the SHA-256 of its folder, or "hub:<id>@<revision>". Needs no network.

    Raises:
        UserError: it can only be a local folder, and there is none.
    """
    folder = local_model_folder(path, where=f"model.path={path}")
    if folder is not None:
        return tree_hash(folder)
    return f"hub:{path}@{revision or 'main'}"


def split_by_prompt(
    records: Sequence[R], *, fraction: float, seed: int, form: Form | None = None
) -> tuple[list[R], list[R]]:
    """Training and held-out records; no prompt is on both sides, and about `fraction` of them are held out.

    A prompt's side is decided by SHA-256 of the seed and the prompt alone, so it is the same in every stage,
    source and order. With `fraction` > 0 and two prompts or more, neither side is empty: if all fall on one
    side, the one nearest to the border is moved. `form` is the run's, by default that of these records: in it
    a text and the same text as one message of the user are one prompt.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"the held-out fraction must be in [0, 1), not {fraction}")
    form = form or form_of(records)
    keys = [split_key(record.prompt, form) for record in records]
    place = {key: _unit_interval(f"{seed}|{key}") for key in set(keys)}
    held_out = {key for key, value in place.items() if value < fraction}
    if fraction > 0 and len(place) >= 2:
        if not held_out:
            held_out = {min(place, key=place.__getitem__)}
        elif len(held_out) == len(place):
            held_out.remove(max(place, key=place.__getitem__))
    sides: tuple[list[R], list[R]] = ([], [])
    for record, key in zip(records, keys, strict=True):
        sides[key in held_out].append(record)
    return sides


def _read_all(
    sources: Sequence[SourceSettings],
    schemas: Sequence[Schema[R]],
    *,
    seed: int,
    run_folder: Path,
    form: Form | Literal["auto"],
) -> tuple[list[R], RecordCounts]:
    if not sources:
        raise UserError(
            "no source of data is given", fix="Name at least one file or hub id as a source's `path`."
        )
    if len({source.weight is None for source in sources}) == 2:
        unweighted = next(source.path for source in sources if source.weight is None)
        fix = "Give every source a `weight`, or none."
        raise UserError("this source has no weight, and others have one", where=unweighted, fix=fix)
    counts = RecordCounts()
    pools = [_read_one(source, schemas, run_folder=run_folder, counts=counts) for source in sources]
    if form == "auto":
        form = form_of([record for pool in pools for record in pool])
    pools = [
        _in_form(source.text_prompts or form, pool, _label(source), counts)
        for source, pool in zip(sources, pools, strict=True)
    ]
    takes = _mixture([source.weight for source in sources], [len(pool) for pool in pools])
    records: list[R] = []
    for number, (source, pool, take) in enumerate(zip(sources, pools, takes, strict=True)):
        chosen = sorted(random.Random(f"{seed}|{number}").sample(range(len(pool)), take))
        records += [pool[index] for index in chosen]
        counts.add(_label(source), LEFT_OUT, len(pool) - take)
    return records, counts


def _read_one(
    source: SourceSettings, schemas: Sequence[Schema[R]], *, run_folder: Path, counts: RecordCounts
) -> list[R]:
    """Every record of one source; its rows are counted in `counts`."""
    path = local_file(source, run_folder)
    name = source.path if path is None else str(path)
    columnar = path is None or path.suffix.lower() in COLUMNAR
    try:
        converter = RowConverter(schemas, source, columnar=columnar)
    except UserError as error:
        raise error.at(f"source {name}") from None
    kept: list[R] = []
    own = RecordCounts()
    first = ""
    for number, (where, raw) in enumerate(hub_rows(source) if path is None else file_rows(path)):
        own.add(_label(source), READ)
        if source.limit is not None and number >= source.limit:
            own.add(_label(source), BEYOND_LIMIT)
            continue
        try:
            kept.append(replace(converter.record(_row(raw), where), where=f"{name}, {where}"))
        except UnusableRowError as unusable:
            own.add(_label(source), unusable.reason)
            first = first or f"; the first is {where}: {unusable.reason}"
        except UserError as error:
            raise error.at(f"{name}, {where}") from None
    try:
        converter.checks.check()
    except UserError as error:
        raise UserError(error.what, where=f"{name}, {error.where}", fix=error.fix) from None
    unjudged = converter.checks.unjudged()
    for column in unjudged.values():
        own.add(_label(source), f"no value in `{column}`, which judges other rows")
    kept = [record for place, record in enumerate(kept) if place not in unjudged]
    own.note(_label(source), REPEATED, len(converter.checks.repeating - set(unjudged)))
    own.unread(_label(source), converter.checks.unread())
    counts.merge(own)
    if not own.read():
        raise UserError("there is no record in it", where=name, fix="Check that this is the file you mean.")
    if not kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in own.dropped().items())
        fix = "Check the source's `columns`, `templates` and `transcripts`."
        what = f"none of its {own.read()} records can be used ({reasons}){first}"
        raise UserError(what, where=name, fix=fix)
    return kept


def _in_form(form: Form, records: list[R], label: str, counts: RecordCounts) -> list[R]:
    """The records with text prompts as they are or, counted, as what a user says."""
    if form == "text":
        return records
    texts = [record.prompt for record in records if isinstance(record.prompt, str)]
    num_transcripts = sum(transcript_as_messages(text) is not None for text in texts)
    counts.note(label, TURNS_NOTE, num_transcripts)
    counts.note(label, NOTE, len(texts) - num_transcripts)
    return [as_conversation(record) for record in records]


def _mixture(weights: Sequence[float | None], sizes: Sequence[int]) -> list[int]:
    """How many records to take of each source: as many as the shares allow without repeating any."""
    shares = [weight for weight in weights if weight is not None]
    if not shares:
        return list(sizes)
    scale = min(size / share for size, share in zip(sizes, shares, strict=True))
    return [min(size, round(scale * share)) for size, share in zip(sizes, shares, strict=True)]


def _label(source: SourceSettings) -> str:
    parts = [part for part in (source.name, source.split if source.split != "train" else None) if part]
    return f"{source.path} ({', '.join(parts)})" if parts else source.path


def _unit_interval(text: str) -> float:
    """A number in [0, 1) that is a function of `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _row(raw: Any) -> Row:
    """A row as it came from its file; bytes are JSON that is not parsed yet."""
    value = parse_json(raw) if isinstance(raw, bytes) else raw
    if not isinstance(value, dict):
        fix = 'Write every record as an object: {"prompt": "…", …}.'
        raise UserError(f"the record is {kind(value)}, not an object", fix=fix)
    return value

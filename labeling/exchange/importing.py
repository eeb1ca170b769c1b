"""Labels that were made elsewhere, entered as events like any others; entering a file twice adds nothing."""

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select

from labeling.sanitize import labeler_name
from labeling.store.database import Transaction
from labeling.store.items import Item
from labeling.store.judgements import Judgement, dumps, ranks_of
from labeling.store.ledger import Event, record, work_of
from labeling.store.project import NewItem, Project, add_items, enter_labeler
from labeling.store.rules import LabelingRules
from labeling.store.tables import events, items
from rlhf.data.columns import UnusableRowError
from rlhf.data.readers import COLUMNAR, file_rows, parse_json
from rlhf.data.records import Comparison, Prompt, Rank, Ranking
from rlhf.data.schemas import PROMPTS, RowConverter
from rlhf.data.sources import read_rankings
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings

FIRST_BETTER, TIED, SECOND_BETTER = (1, 2), (1, 1), (2, 1)


@dataclass(frozen=True)
class ForeignLabel:
    """One labeler's ranks of an item, from a file."""

    item: Item
    labeler: str
    ranks: tuple[Rank, ...]
    where: str
    comparisons: tuple[Comparison, ...] | None = None
    """The probabilities behind the ranks, of a labeler that gives any."""

    @property
    def key(self) -> tuple[str, str]:
        return self.item.key, self.labeler


@dataclass(frozen=True)
class Imported:
    """What became of a file."""

    items: int
    """Items that are new to the project."""
    labels: int
    """Labels that are new to it."""
    repeated: int
    """Labels that had been entered before."""
    replaced: int
    """New labels that took the place of the same labeler's earlier one."""


@dataclass(frozen=True)
class JudgeColumns:
    """Where a table of pairs keeps its texts and several people's judgements of them."""

    prompt: str
    """A template with `{column}` place-holders."""
    first: str
    second: str
    judges: tuple[str, ...]
    """Columns of judgements, one for each labeler, who is named after it."""
    codes: tuple[str, str, str]
    """What stands there for: first better, tie, second better."""


def ranking_labels(source: SourceSettings, *, labeler: str) -> list[ForeignLabel]:
    """The rankings and pairs of a source; `labeler` is who labelled what names no annotator.

    Comparisons are ranked by how probably each completion wins one, and kept next to the ranks.

    Raises:
        UserError: a malformed record.
    """
    records, _ = read_rankings([source], seed=0, run_folder=Path())
    return [
        ForeignLabel(
            item=Item(prompt=ranking.prompt, completions=ranking.completions),
            labeler=_name(ranking.annotator or labeler, ranking.where),
            ranks=_ranks(ranking),
            where=ranking.where,
            comparisons=_soft(ranking),
        )
        for ranking in records
    ]


def judged_pairs(path: Path, columns: JudgeColumns) -> list[ForeignLabel]:
    """The judgements of a JSON, JSONL or CSV file in which every row is a pair with several labels.

    Raises:
        UserError: a missing column, or a judgement that is none of the codes.
    """
    if not path.is_file():
        raise UserError("there is no such file", where=str(path), fix="Name a .json, .jsonl or .csv file.")
    found: list[ForeignLabel] = []
    source = SourceSettings(path=str(path), templates={"prompt": columns.prompt})
    converter = RowConverter(PROMPTS, source, columnar=path.suffix.lower() in COLUMNAR)
    for where, raw in file_rows(path):
        try:
            row = parse_json(raw) if isinstance(raw, bytes) else raw
            found += _judgements(row, converter, columns, f"{path}, {where}")
        except UnusableRowError as unusable:
            raise UserError(unusable.reason, where=f"{path}, {where}", fix="Remove the row.") from None
        except UserError as error:
            raise error.at(f"{path}, {where}") from None
    return found


def enter(project: Project, labels: Sequence[ForeignLabel]) -> Imported:
    """Add items that are new, and the labels, all or none.

    If a labeler has labelled an equal item n times in `labels`, these are n items.
    """
    times: Counter[tuple[str, str]] = Counter()
    new_items = []
    for label in labels:
        times[label.key] += 1
        new_items.append(NewItem(label.item, copy=times[label.key], where=label.where))
    with project.database.write() as transaction:
        num_items = add_items(transaction, new_items)
        names = dict.fromkeys(label.labeler for label in labels)
        numbers = {name: enter_labeler(transaction, name) for name in names}
        outcomes = Counter(
            _enter_one(transaction, project.rules, label, new.key, numbers[label.labeler])
            for label, new in zip(labels, new_items, strict=True)
        )
    num_labels = outcomes["added"] + outcomes["replaced"]
    return Imported(num_items, num_labels, outcomes["repeated"], outcomes["replaced"])


def _enter_one(
    transaction: Transaction, rules: LabelingRules, label: ForeignLabel, key: str, labeler_id: int
) -> Literal["added", "replaced", "repeated"]:
    """Make this the labeler's label in force; nothing is to be done if an equal one is."""
    query = select(items.c.id).where(items.c.key == key)
    item_id = transaction.connection.execute(query).scalar_one()
    said = [key, label.labeler, label.ranks, *([label.comparisons] if label.comparisons else [])]
    act = f"import:{hashlib.sha256(dumps(said).encode()).hexdigest()}"
    before = work_of(transaction, item_id, labeler_id)
    in_force = before["event_id"] if before is not None and before["state"] == "submitted" else None
    if (_submission(transaction, in_force) or "").startswith(act):
        return "repeated"
    judgement = Judgement(label.ranks).checked(len(label.ranks), rules)
    soft = {"comparisons": label.comparisons} if label.comparisons else {}
    event = Event(
        kind="submitted",
        item_id=item_id,
        labeler_id=labeler_id,
        submission=_new_act(transaction, act),
        shown=tuple(range(len(label.ranks))),
        data={"judgement": judgement.to_json(), "late": False, "source": label.where, **soft},
    )
    record(transaction, event)
    return "added" if in_force is None else "replaced"


def _submission(transaction: Transaction, event_id: int | None) -> str | None:
    """The name of the act that made an event."""
    return transaction.connection.execute(
        select(events.c.submission).where(events.c.id == event_id)
    ).scalar_one_or_none()


def _new_act(transaction: Transaction, act: str) -> str:
    """`act`, or a name after it where the same label was entered before and another took its place."""
    known = select(events.c.id).where(events.c.submission == act)
    used = transaction.connection.execute(known).scalar() is not None
    return f"{act}:{uuid.uuid4().hex}" if used else act


def _ranks(ranking: Ranking) -> tuple[Rank, ...]:
    if ranking.ranks is not None:
        return _dense(ranking.ranks)
    return ranks_of(ranking.comparisons or (), len(ranking.completions))


def _soft(ranking: Ranking) -> tuple[Comparison, ...] | None:
    """The comparisons that ranks alone would not tell: all but one that is certain, or a tie."""
    found = ranking.comparisons
    if found is None or (len(ranking.completions) == 2 and all(p in (0, 0.5, 1) for *_, p in found)):
        return None
    return found


def _dense(ranks: Iterable[Rank]) -> tuple[Rank, ...]:
    """Ranks from 1 without gaps, as any whole numbers may stand in a file."""
    ranks = list(ranks)
    values = sorted({rank for rank in ranks if isinstance(rank, int)})
    return tuple(values.index(rank) + 1 if isinstance(rank, int) else rank for rank in ranks)


def _judgements(
    row: Any, converter: RowConverter[Prompt], columns: JudgeColumns, where: str
) -> list[ForeignLabel]:
    if not isinstance(row, dict):
        raise UserError("the record is not an object", fix="Write one object a line.")
    missing = [name for name in (columns.first, columns.second, *columns.judges) if name not in row]
    if missing:
        raise UserError(f"there is no column `{missing[0]}`", fix=f"Columns here: {', '.join(row)}.")
    item = Item(
        prompt=converter.record(row).prompt, completions=(str(row[columns.first]), str(row[columns.second]))
    )
    meaning = dict(zip(columns.codes, (FIRST_BETTER, TIED, SECOND_BETTER), strict=True))
    found = []
    for judge in columns.judges:
        code = str(row[judge])
        if code not in meaning:
            raise UserError(
                f"`{judge}` is {code!r}", fix=f"Judgements are {', '.join(columns.codes)} (--codes)."
            )
        found.append(ForeignLabel(item, _name(judge, where), meaning[code], where))
    return found


def _name(name: str, where: str) -> str:
    try:
        return labeler_name(name)
    except UserError as error:
        raise error.at(where) from None

"""A labeling project: its rules, items and labelers, in a folder (SQLite) or a PostgreSQL database."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

from sqlalchemy import Connection, bindparam, func, insert, select
from sqlalchemy.engine import RowMapping

from labeling.sanitize import labeler_name
from labeling.store.database import Database, NoProjectError, Transaction, no_project
from labeling.store.items import Item
from labeling.store.judgements import competition_ranks, dumps
from labeling.store.rules import LabelingRules
from labeling.store.schema import version_of
from labeling.store.tables import items, labelers, queue, settings, tokens
from rlhf.data.records import Message, Rank, Turns, prompt_key
from rlhf.errors import UserError

ItemKind = Literal["item", "gold", "qualification"]
MAX_COMPLETIONS = 9
"""One for each number key."""
_AT_ONCE = 500
_ITEM = select(items).where(items.c.id == bindparam("item_id"))


@dataclass(frozen=True)
class StoredItem:
    """An item as the project keeps it, with all that labelers do not see."""

    item_id: int
    key: str
    kind: ItemKind
    prompt: str | Turns
    completions: tuple[str, ...]
    models: tuple[str, ...] | None
    answer: tuple[Rank, ...] | None
    """The known ranks of a gold or qualification item."""


@dataclass(frozen=True)
class NewItem:
    """An item to be added, and where it was read.

    Raises:
        UserError: it has more completions than there are number keys.
    """

    item: Item
    kind: ItemKind = "item"
    answer: tuple[Rank, ...] | None = None
    priority: float = 0.0
    """What is higher comes earlier."""
    copy: int = 1
    """Tells an item from an equal one that is to be labelled for itself."""
    where: str = ""

    def __post_init__(self) -> None:
        if len(self.item.completions) > MAX_COMPLETIONS:
            raise UserError(
                f"{len(self.item.completions)} completions are more than {MAX_COMPLETIONS}",
                where=self.where or None,
                fix=f"Split the item: labelers rank at most {MAX_COMPLETIONS} at once.",
            )

    @property
    def key(self) -> str:
        """What the project knows the item by."""
        return self.item.key if self.copy == 1 else f"{self.item.key}#{self.copy}"


class Project:
    """An open project."""

    def __init__(self, database: Database, row: Any) -> None:
        self.database = database
        self.rules = LabelingRules.model_validate_json(row.policy)
        self.instructions: str = json.loads(row.instructions)
        self.secret: str = row.secret
        self.where = database.where

    @staticmethod
    def create(
        location: str | Path,
        rules: LabelingRules,
        *,
        instructions: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> "Project":
        """Make an empty project.

        Raises:
            UserError: there is a project already, or the database cannot be used.
        """
        database = Database(location, clock=clock)
        if database.folder is not None:
            try:
                database.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot make the project's folder ({error.strerror})",
                    where=str(database.folder),
                    fix="Name another.",
                ) from None
        text = default_instructions() if instructions is None else instructions
        row = {"policy": rules.model_dump_json(), "instructions": dumps(text), "secret": secrets.token_hex()}
        try:
            with database.read() as connection:
                exists = version_of(connection) > 0
            if exists:
                raise UserError(
                    "there is a labeling project already",
                    where=database.where,
                    fix="Name another folder or database, or add to this one: python -m labeling import.",
                )
            database.prepare(create=True)
            with database.write() as transaction:
                transaction.connection.execute(insert(settings).values(at=transaction.now, **row))
            return Project._of(database)
        except UserError:
            database.close()
            raise

    @staticmethod
    def open(location: str | Path, *, clock: Callable[[], float] | None = None) -> "Project":
        """The project in that place, its schema brought up to date.

        Raises:
            NoProjectError: there is none.
            UserError: the database cannot be used.
        """
        database = Database(location, clock=clock)
        try:
            database.prepare()
            return Project._of(database)
        except UserError:
            database.close()
            raise

    @staticmethod
    def open_or_create(location: str | Path, rules: Callable[[], LabelingRules]) -> "Project":
        """The project in that place; an empty one with these rules where there is none.

        Raises:
            UserError: the database cannot be used.
        """
        try:
            return Project.open(location)
        except NoProjectError:
            return Project.create(location, rules())

    @staticmethod
    def _of(database: Database) -> "Project":
        with database.read() as connection:
            newest = select(settings).order_by(settings.c.id.desc()).limit(1)
            row = connection.execute(newest).one_or_none()
        if row is None:  # its creation was interrupted
            raise no_project(database.where)
        return Project(database, row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.database.close()

    def add(self, new: Iterable[NewItem]) -> int:
        """Add items, all or none of them, and return how many; those that the project has are left out."""
        with self.database.write() as transaction:
            return add_items(transaction, new)

    def item(self, item_id: int) -> StoredItem:
        """The item of that number, which must exist."""
        with self.database.read() as connection:
            return stored_item(item_row(connection, item_id))

    def items(self, *kinds: ItemKind) -> list[StoredItem]:
        """All items of these kinds, in the order in which they were added."""
        with self.database.read() as connection:
            query = select(items).where(items.c.kind.in_(kinds)).order_by(items.c.id)
            return [stored_item(row) for row in connection.execute(query).mappings()]

    def num_items(self, kind: ItemKind = "item") -> int:
        with self.database.read() as connection:
            count = select(func.count()).select_from(queue).where(queue.c.kind == kind)
            return int(connection.execute(count).scalar_one())

    def labelers(self) -> dict[int, str]:
        """Number → name of everybody who has opened the project."""
        with self.database.read() as connection:
            query = select(labelers.c.id, labelers.c.name).order_by(labelers.c.id)
            return {number: name for number, name in connection.execute(query)}

    def pseudonym(self, labeler: str) -> str:
        """A name that stays the same within the project and cannot be led back without its database."""
        digest = hmac.new(bytes.fromhex(self.secret), labeler.encode(), hashlib.sha256).hexdigest()
        return f"labeler-{digest[:12]}"

    def labeler_id(self, name: str) -> int:
        """The number of the labeler of that name, who is entered if they are new.

        Raises:
            UserError: the name is empty, too long, or has characters that cannot be seen.
        """
        name = labeler_name(name)
        with self.database.read() as connection:
            known = connection.execute(select(labelers.c.id).where(labelers.c.name == name)).scalar()
        if known is not None:
            return int(known)
        with self.database.write() as transaction:
            return enter_labeler(transaction, name)

    def issue_token(self, name: str) -> str:
        """A new token for a labeler, which replaces their earlier one; only its hash is kept."""
        number, token = self.labeler_id(name), secrets.token_urlsafe(24)
        with self.database.write() as transaction:
            row = {"at": transaction.now, "labeler_id": number, "sha256": _sha256(token)}
            transaction.connection.execute(insert(tokens).values(row))
        return token

    def labeler_of(self, token: str) -> str | None:
        """The name of the labeler whose newest token this is, or None."""
        later = tokens.alias()
        newest = select(func.max(later.c.id)).where(later.c.labeler_id == tokens.c.labeler_id)
        query = (
            select(labelers.c.name)
            .join(tokens, tokens.c.labeler_id == labelers.c.id)
            .where(tokens.c.sha256 == _sha256(token), tokens.c.id == newest.scalar_subquery())
        )
        with self.database.read() as connection:
            return connection.execute(query).scalar()


def default_instructions() -> str:
    """What labelers read if the project has no instructions of its own."""
    return resources.files("labeling").joinpath("instructions.md").read_text(encoding="utf-8")


def enter_labeler(transaction: Transaction, name: str) -> int:
    """The labeler's number, inside a transaction; `name` has been checked."""
    connection = transaction.connection
    known = connection.execute(select(labelers.c.id).where(labelers.c.name == name)).scalar()
    if known is None:
        new = insert(labelers).values(at=transaction.now, name=name).returning(labelers.c.id)
        known = connection.execute(new).scalar_one()
    return int(known)


def add_items(transaction: Transaction, new: Iterable[NewItem]) -> int:
    """As `Project.add`, inside a transaction."""
    num_added, rest = 0, iter(new)
    while part := list(islice(rest, _AT_ONCE)):
        num_added += _add(transaction, part)
    return num_added


def item_row(connection: Connection, item_id: int) -> RowMapping:
    """The row of an item, which must exist."""
    return connection.execute(_ITEM, {"item_id": item_id}).mappings().one()


def stored_item(row: Any) -> StoredItem:
    """A row of the table `items`."""
    prompt = json.loads(row["prompt"])
    return StoredItem(
        item_id=row["id"],
        key=row["key"],
        kind=row["kind"],
        prompt=prompt if isinstance(prompt, str) else tuple(map(Message.from_json, prompt)),
        completions=tuple(json.loads(row["completions"])),
        models=None if row["models"] is None else tuple(json.loads(row["models"])),
        answer=None if row["answer"] is None else tuple(json.loads(row["answer"])),
    )


def _add(transaction: Transaction, part: Sequence[NewItem]) -> int:
    keys = [new.key for new in part]
    known = set(transaction.connection.execute(select(items.c.key).where(items.c.key.in_(keys))).scalars())
    rows: list[dict[str, Any]] = []
    for new, key in zip(part, keys, strict=True):
        if key not in known:
            known.add(key)
            rows.append(_row(new, key))
    if rows:
        added = transaction.connection.execute(insert(items).returning(items.c.id, items.c.key), rows)
        number = {key: item_id for item_id, key in added}
        transaction.connection.execute(
            insert(queue),
            [
                {
                    "item_id": number[row["key"]],
                    "kind": row["kind"],
                    "priority": row["priority"],
                    "num_held": 0,
                }
                for row in rows
            ],
        )
    return len(rows)


def _row(new: NewItem, key: str) -> dict[str, Any]:
    item = new.item
    return {
        "key": key,
        "kind": new.kind,
        "prompt": prompt_key(item.prompt),
        "completions": dumps(item.completions),
        "models": None if item.writers is None else dumps(item.writers),
        "answer": None if new.answer is None else dumps(competition_ranks(new.answer)),
        "priority": new.priority,
    }


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()

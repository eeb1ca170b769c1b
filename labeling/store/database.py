"""SQLite or PostgreSQL: how a labeling database is reached, and what a transaction of it is.

Every writing transaction is alone, and writers take turns in the order in which they came: on SQLite by the
lock of a file next to the database and then BEGIN IMMEDIATE with a busy time-out, on PostgreSQL by an
advisory lock. (SQLite alone lets whoever asks in the right moment go first, and others wait for seconds.) So
what a transaction has read is still true when it writes, with no retries; people who rank texts are far from
needing more. Readers never wait.

SQLite runs in WAL mode with `synchronous=FULL`: what has been acknowledged survives a power cut.
"""

import fcntl
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, text

from labeling.retry import Pauses
from labeling.store.schema import CURRENT, migrate, version_of
from rlhf.errors import UserError

FILE = "labels.db"
"""The SQLite file in a project's folder."""
LOCK = "labels.lock"
"""An empty file next to it, whose lock is the writer's turn."""
BUSY_SECONDS = 60.0
"""How long SQLite waits for another program that writes to the file."""

STORE_PAUSES = Pauses(first=0.5, longest=10.0)
"""Before a call that the database refused is made again."""

_LOCK = 7_465_172
"""Key of the advisory lock, together with the schema that holds the tables."""


class StoreError(UserError):
    """The database cannot be used just now; the same call may go through later."""


class NoProjectError(UserError):
    """No labeling project has been made in this place."""


@dataclass(frozen=True)
class Transaction:
    """A writing transaction: nobody else writes until it ends."""

    connection: Connection
    now: float
    """Seconds since 1970: the database server's clock, or this machine's for SQLite."""


class Database:
    """A project's database. Safe to share among threads; after a fork, open another.

    Raises:
        UserError: it cannot be reached, or is not one.
    """

    def __init__(self, location: str | Path, *, clock: Callable[[], float] | None = None) -> None:
        url = _url(location)
        is_folder = url.get_backend_name() == "sqlite"
        self.folder = Path(location) if is_folder else None
        self.where = str(location) if is_folder else url.render_as_string(hide_password=True)
        self._clock = clock
        try:
            self.engine = _engine(url)
        except ModuleNotFoundError as error:
            raise UserError(
                f"the driver `{error.name}` is not installed",
                where=self.where,
                fix="Install it: pip install 'triptych[postgresql]'.",
            ) from None

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction that may change things: committed at the end of the block, undone by an exception."""
        with (
            self._explained(),
            self._turn(),
            self.engine.connect().execution_options(triptych_writes=True) as connection,
            connection.begin(),
        ):
            if connection.dialect.name == "postgresql":
                lock = "SELECT pg_advisory_xact_lock(:key, hashtext(current_schema()))"
                connection.execute(text(lock), {"key": _LOCK})
            yield Transaction(connection, self._now(connection))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state and changes nothing."""
        level = {} if self.engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        with (
            self._explained(),
            self.engine.connect().execution_options(**level) as connection,
            connection.begin(),
        ):
            yield connection

    def prepare(self, *, create: bool = False) -> None:
        """Bring the schema to this program's version.

        Raises:
            NoProjectError: there is no project here and none is to be created.
            UserError: it is of a later version.
        """
        if self.folder is not None and not create and not (self.folder / FILE).is_file():
            raise no_project(self.where)  # before SQLite makes an empty file there
        with self.read() as connection:
            found = version_of(connection)
        if found == 0 and not create:
            raise no_project(self.where)
        if found != CURRENT:
            with self.write() as transaction:
                migrate(transaction.connection, where=self.where)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the writers who came before, where the database does not see to it."""
        if self.folder is None:
            yield
            return
        try:
            lock = (self.folder / LOCK).open("ab")
        except OSError as error:
            raise _refusal(error.strerror or "no reason given", self.where) from error
        with lock:  # closing it ends the turn, also when the process is killed
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _now(self, connection: Connection) -> float:
        if self._clock is not None:
            return self._clock()
        if connection.dialect.name == "postgresql":
            return float(
                connection.execute(text("SELECT EXTRACT(EPOCH FROM clock_timestamp())")).scalar_one()
            )
        return time.time()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What an operator can correct, in words; a mistake of ours keeps its traceback."""
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
            raise _refusal(_first_line(getattr(error, "orig", error)), self.where) from error
        except exc.DatabaseError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise UserError(
                    "this is not a labeling database", where=self.where, fix="Put the file back."
                ) from None
            raise


def shown_location(location: str | Path) -> str:
    """A project's location as it may be printed: without the password, and fit for a shell.

    Raises:
        UserError: it is none.
    """
    url = _url(location)
    sqlite = url.get_backend_name() == "sqlite"
    return shlex.quote(str(location) if sqlite else url.render_as_string(hide_password=True))


def _refusal(reason: str, where: str) -> StoreError:
    return StoreError(
        f"the database refuses ({reason})",
        where=where,
        fix="Check that it runs, that there is room, and that you may write there; then try again. "
        "What was submitted before is safe.",
    )


def no_project(where: str) -> NoProjectError:
    return NoProjectError(
        "there is no labeling project here",
        where=where,
        fix="Make one: python -m labeling create --project FOLDER --items FILE.",
    )


def _url(location: str | Path) -> URL:
    if isinstance(location, Path) or "://" not in location:
        folder = Path(location)
        if folder.exists() and not folder.is_dir():
            raise UserError(
                "this is a file, not a project's folder", where=str(folder), fix="Name the folder."
            )
        return URL.create("sqlite", database=str(folder / FILE))
    try:
        url = make_url(location)
    except exc.ArgumentError:
        raise UserError("this is no database URL", where="--project", fix=_URL_FIX) from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise UserError(f"`{url.drivername}` is not supported", where="--project", fix=_URL_FIX)
    return url.set(drivername="postgresql+psycopg")


_URL_FIX = "Give a folder (SQLite), or postgresql://user@host/database."


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("triptych_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]

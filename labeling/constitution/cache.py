"""Every answer that was received, by the content of its question, and counts of requests and tokens.

One SQLite file. An answer is committed before the next question waits for it, so a process may be killed at
any moment, and what it had been told is not asked again. Several processes may use one file.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlhf.errors import UserError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (
    scope TEXT NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (scope, name)
) WITHOUT ROWID;
"""
_ADD = """
INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT (scope, name) DO UPDATE SET n = n + excluded.n
"""
_LOCK_SECONDS = 60.0


class Cache:
    """Answers by key, and counts by name for one `scope`: a stage of a run."""

    def __init__(self, path: Path, *, scope: str) -> None:
        self._scope = scope
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
            # A killed process loses nothing; a power cut may lose the last moments, which are asked again.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot use this file for answers ({error})",
                where=str(path),
                fix="Name another (`labeling.constitution.cache`), or move the damaged one away.",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def get(self, key: str) -> Any | None:
        """The answer that is known by `key`, or None."""
        row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, answer: Any, counts: Mapping[str, int]) -> None:
        """Keep an answer, and its counts, both or neither.

        Raises:
            ValueError: a number in it is not finite.
        """
        text = json.dumps(answer, allow_nan=False)
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))
            self._add(counts)

    def count(self, **counts: int) -> None:
        """Add to the counts of these names."""
        with self._transaction():
            self._add(counts)

    def counts(self) -> dict[str, int]:
        """Everything that has been counted in this scope, by name."""
        rows = self._database.execute(
            "SELECT name, n FROM counts WHERE scope = ? ORDER BY name", (self._scope,)
        )
        return dict(rows.fetchall())

    def forget_counts(self) -> None:
        """Begin to count again from nothing; answers stay."""
        self._database.execute("DELETE FROM counts WHERE scope = ?", (self._scope,))

    def _add(self, counts: Mapping[str, int]) -> None:
        rows: Iterable[tuple[str, str, int]] = [(self._scope, name, n) for name, n in counts.items() if n]
        self._database.executemany(_ADD, rows)

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._database)


class _Transaction:
    """Takes the lock for writing at once, where sqlite3's own would fail when it comes to write."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")


def key_of(*parts: str) -> str:
    """SHA-256 of the parts."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()

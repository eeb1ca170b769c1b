"""The tables of a labeling database, as queries use them: read from the migrations that make them.

Five tables are only ever added to, and the database itself refuses anything else: `settings`, `items`,
`labelers`, `tokens` and `events`. What has happened is in `events` alone. `work` and `queue` say what follows
from it for the next assignment; `labeling.store.ledger.replay` makes them again from the events.

Free text (prompts, completions, notes) is stored as JSON in ASCII, so that NUL, half surrogate pairs and
control characters are plain text to every database and to whoever looks into it with another program.
"""

from typing import Any

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

from labeling.store.schema import MIGRATIONS, NewTable

METADATA = MetaData()

_TYPES: dict[str, TypeEngine[Any]] = {
    # SQLite counts up by itself only in a column that is called INTEGER.
    "{id}": BigInteger().with_variant(Integer, "sqlite"),
    "{real}": Double(),
    "BIGINT": BigInteger(),
    "INTEGER": Integer(),
    "TEXT": Text(),
}
"""First word of a column's definition → its type in queries."""


def _column(table: NewTable, name: str) -> Column[Any]:
    definition = table.columns[name]
    word = definition.split()[0]
    is_key = word == "{id}" or "PRIMARY KEY" in definition or name in table.primary_key
    return Column(name, _TYPES[word], primary_key=is_key)


for _migration in MIGRATIONS.values():
    for _step in _migration.steps:
        if isinstance(_step, NewTable):
            Table(_step.name, METADATA, *(_column(_step, name) for name in _step.columns))

settings = METADATA.tables["settings"]
"""Rules (`policy`) and instructions as they were set, the newest counts; `secret` keys the pseudonyms."""

items = METADATA.tables["items"]
"""`kind`: `item`, `gold` or `qualification`; `answer` holds the known ranks of the latter two."""

labelers = METADATA.tables["labelers"]

tokens = METADATA.tables["tokens"]
"""Hashes of the tokens by which a browser says who it is; a labeler's newest counts."""

events = METADATA.tables["events"]
"""`at`: seconds since 1970 by the database's clock; `shown`: the completions' numbers in the order shown;
`seconds`: working time on the item; `submission`: the client's own id of a submission, unique."""

work = METADATA.tables["work"]
"""Where a labeler stands with an item: `leased`, `submitted`, `skipped` or `expired`; `event_id` is the
event that made it submitted or skipped."""

queue = METADATA.tables["queue"]
"""How many labelers hold or have labelled an item."""

"""The tables of a labeling database, as queries see them; `labeling.store.schema` makes them.

Five tables are only ever added to, and the database itself refuses anything else: `settings`, `items`,
`labelers`, `tokens` and `events`. What has happened is in `events` alone. `work` and `queue` say what follows
from it for the next assignment; `labeling.replay` makes them again from the events.

Free text (prompts, completions, notes) is stored as JSON in ASCII, so that NUL, half surrogate pairs and
control characters are plain text to every database and to whoever looks into it with another program.
"""

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text

METADATA = MetaData()

# SQLite counts up by itself only in a column that is called INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")

settings = Table(
    "settings",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("at", Double),
    Column("policy", Text),
    Column("instructions", Text),
    Column("secret", Text),
)
"""LabelingRules and instructions as they were set, the newest counts; `secret` keys the pseudonyms."""

items = Table(
    "items",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("key", Text),
    Column("kind", Text),
    Column("prompt", Text),
    Column("completions", Text),
    Column("models", Text),
    Column("answer", Text),
    Column("priority", Double),
)
"""`kind`: `item`, `gold` or `qualification`; `answer` holds the known ranks of the latter two."""

labelers = Table(
    "labelers",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("at", Double),
    Column("name", Text),
)

tokens = Table(
    "tokens",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("at", Double),
    Column("labeler_id", BigInteger),
    Column("sha256", Text),
)
"""Hashes of the tokens by which a browser says who it is; a labeler's newest counts."""

events = Table(
    "events",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("at", Double),
    Column("kind", Text),
    Column("item_id", BigInteger),
    Column("labeler_id", BigInteger),
    Column("session", Text),
    Column("submission", Text),
    Column("shown", Text),
    Column("seconds", Double),
    Column("data", Text),
)
"""`at`: seconds since 1970 by the database's clock; `shown`: the completions' numbers in the order shown;
`seconds`: working time on the item; `submission`: the client's own id of a submission, unique."""

work = Table(
    "work",
    METADATA,
    Column("item_id", BigInteger, primary_key=True),
    Column("labeler_id", BigInteger, primary_key=True),
    Column("state", Text),
    Column("session", Text),
    Column("shown", Text),
    Column("seen_at", Double),
    Column("lease_until", Double),
    Column("draft", Text),
    Column("event_id", BigInteger),
)
"""Where a labeler stands with an item: `leased`, `submitted`, `skipped` or `expired`; `event_id` is the
event that made it submitted or skipped."""

queue = Table(
    "queue",
    METADATA,
    Column("item_id", BigInteger, primary_key=True),
    Column("kind", Text),
    Column("priority", Double),
    Column("num_held", Integer),
)
"""How many labelers hold or have labelled an item."""

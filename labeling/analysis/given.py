"""All that people say of items apart from ranks: quality scores, notes, flags, why they skipped one."""

import fnmatch
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, select

from labeling.analysis.decisions import decisions
from labeling.store.labels import Label, labels_of_kind
from labeling.store.project import ItemKind, Project
from labeling.store.tables import events, items, labelers, work
from rlhf.data.records import Rank

Act = Literal["label", "skip", "flag", "decision", "pass"]
KINDS: tuple[ItemKind, ...] = ("item", "gold", "qualification")


@dataclass(frozen=True)
class Given:
    """One thing that somebody said of an item, as it stands now: what was undone or replaced is not there.

    Scores and ranks are in the item's own order of completions.
    """

    item: int
    kind: ItemKind
    labeler: str
    act: Act
    """Labelers label, skip and flag; adjudicators decide, pass (leave it undecided) and flag."""
    ranks: tuple[Rank, ...] | None = None
    scores: tuple[int | None, ...] | None = None
    """Quality from 1 to 7; nothing where no completion got any."""
    note: str | None = None
    reason: str | None = None
    """Of a skip, a flag or a pass."""
    seconds: float | None = None
    """Working time of a label."""
    late: bool | None = None
    """Whether a label came after its lease."""

    @property
    def says_more_than_ranks(self) -> bool:
        return any(value is not None for value in (self.scores, self.note, self.reason))

    def to_json(self) -> dict[str, Any]:
        """What there is of it, without what is not."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def read_given(project: Project) -> list[Given]:
    """All of it, by item and then in the order in which it was said."""
    found: list[tuple[int, Given]] = []
    with project.database.read() as connection:
        for kind in KINDS:
            found += [(label.event_id, _labelled(label, kind)) for label in labels_of_kind(connection, kind)]
        found += _reasons(connection)
    found += _decided(project)
    return [given for _, given in sorted(found, key=lambda each: (each[1].item, each[0]))]


def flags_by_item(given: Iterable[Given]) -> dict[int, list[str]]:
    """Item → the reasons for which it was flagged, each once."""
    found: defaultdict[int, dict[str, None]] = defaultdict(dict)
    for each in given:
        if each.act == "flag" and each.reason is not None:
            found[each.item][each.reason] = None
    return {item: list(reasons) for item, reasons in found.items()}


def are_allowed(reasons: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether every reason is one of those named, letter case apart; in a pattern, `*` is anything."""
    return all(any(_matches(reason, pattern) for pattern in patterns) for reason in reasons)


def count_reasons(flags: Mapping[int, Sequence[str]]) -> dict[str, int]:
    """Reason → items flagged for it, the most frequent first."""
    counts = Counter(reason for reasons in flags.values() for reason in reasons)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _matches(reason: str, pattern: str) -> bool:
    plain, wanted = reason.strip().casefold(), pattern.strip().casefold()
    return plain == wanted or fnmatch.fnmatchcase(plain, wanted)


def _labelled(label: Label, kind: ItemKind) -> Given:
    judgement = label.judgement
    has_scores = any(score is not None for score in judgement.scores)
    return Given(
        item=label.item_id,
        kind=kind,
        labeler=label.labeler,
        act="label",
        ranks=label.ranks,
        scores=judgement.scores if has_scores else None,
        note=judgement.note or None,
        seconds=label.seconds,
        late=label.late,
    )


def _reasons(connection: Connection) -> list[tuple[int, Given]]:
    """Flags, skips that stand, and what adjudicators left undecided, each with its event's number."""
    columns = (events.c.id, events.c.kind, events.c.data, items.c.id, items.c.kind, labelers.c.name)
    query = select(*columns).join(items, items.c.id == events.c.item_id)
    query = query.join(labelers, labelers.c.id == events.c.labeler_id)
    skipped = select(work.c.event_id).where(work.c.state == "skipped")
    query = query.where(events.c.kind.in_(("flagged", "passed")) | events.c.id.in_(skipped))
    return [
        (number, Given(item, kind, name, _ACTS[act], reason=json.loads(data)["reason"]))
        for number, act, data, item, kind, name in connection.execute(query)
    ]


def _decided(project: Project) -> list[tuple[int, Given]]:
    """The decisions that stand, each with its event's number."""
    with project.database.read() as connection:
        kinds = {number: kind for number, kind in connection.execute(select(items.c.id, items.c.kind))}
    names = project.labelers()
    return [
        (
            decision.event_id,
            Given(
                item=decision.item_id,
                kind=kinds[decision.item_id],
                labeler=names[decision.by],
                act="decision",
                ranks=decision.ranks,
                note=decision.note or None,
            ),
        )
        for decision in decisions(project).values()
    ]


_ACTS: dict[str, Act] = {"flagged": "flag", "skipped": "skip", "passed": "pass"}

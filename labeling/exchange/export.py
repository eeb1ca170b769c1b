"""Labels as training data: rankings in our record format, or pairs as TRL's trainers read them.

What is written is a function of the labels alone, to the byte.
"""

import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select

from labeling.analysis.agreement import Ratings, agreement
from labeling.analysis.consensus import consensus
from labeling.analysis.decisions import by_item, decisions
from labeling.store.judgements import implied_pairs
from labeling.store.labels import Label, read_labels
from labeling.store.project import Project, StoredItem
from labeling.store.tables import events
from rlhf.data.exports import ExportManifest
from rlhf.data.records import Comparison, Rank, Ranking, Turns, to_json
from rlhf.errors import UserError
from rlhf.runs.files import sha256_file, storing, write_atomic
from rlhf.runs.manifest import MANIFEST, json_value

Shape = Literal["rankings", "pairs"]
Which = Literal["consensus", "all"]
CONSENSUS, ADJUDICATED = "consensus", "adjudicated"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write."""

    shape: Shape = "rankings"
    labels: Which = "consensus"
    """One ranking of each item, a decision if there is one and else the consensus; or every label."""
    min_labels: int = 1
    """Items with fewer labels, and without a decision, are left out."""
    pseudonyms: bool = False
    """Name labelers by pseudonyms, which are the same in every export of the project."""


def export(project: Project, folder: Path, options: ExportOptions) -> ExportManifest:
    """Write `rankings.jsonl` or `pairs.jsonl` and `manifest.json`, which comes last, into `folder`.

    Raises:
        UserError: no item has enough labels, or the folder cannot be written.
    """
    labels = read_labels(project)
    chosen = list(_rankings(project, labels, options))
    rows = [row for item, ranking in chosen for row in _rows(item, ranking, options)]
    if not rows:
        what = "no label says that one completion is better" if chosen else "no item has enough labels"
        raise UserError(what, where=project.where, fix="Continue ranking, or lower --min-labels.")
    name = f"{options.shape}.jsonl"
    with storing(folder):
        _make(folder)
        (folder / MANIFEST).unlink(missing_ok=True)
        write_atomic(folder / name, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
        manifest = ExportManifest(
            records=name,
            sha256=sha256_file(folder / name),
            num_records=len(rows),
            shape=options.shape,
            labels=options.labels,
            pseudonyms=options.pseudonyms,
            last_event=_last_event(project),
            policy=project.rules.model_dump(mode="json"),
            metrics=_metrics(labels, chosen),
        )
        write_atomic(folder / MANIFEST, manifest.to_json())
    return manifest


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError("a file stands in the way", where=str(folder), fix="Name a folder.") from None


def pseudonym(project: Project, labeler: str) -> str:
    """A name that stays the same within the project and cannot be led back without its database."""
    digest = hmac.new(bytes.fromhex(project.secret), labeler.encode(), hashlib.sha256).hexdigest()
    return f"labeler-{digest[:12]}"


def _rankings(
    project: Project, labels: Sequence[Label], options: ExportOptions
) -> Iterator[tuple[StoredItem, Ranking]]:
    grouped, decided = by_item(labels), decisions(project)
    for item in project.items("item"):
        own = grouped.get(item.item_id, [])
        decision = decided.get(item.item_id)
        if decision is None and len(own) < max(1, options.min_labels):
            continue
        if options.labels == "all":
            for label in own:
                name = pseudonym(project, label.labeler) if options.pseudonyms else label.labeler
                soft = label.comparisons if options.shape == "rankings" else None
                yield item, _ranking(item, label.ranks, name, soft)
        elif decision is not None:
            yield item, _ranking(item, decision.ranks, ADJUDICATED)
        else:
            yield item, _ranking(item, consensus([label.ranks for label in own]).ranks, CONSENSUS)


def _ranking(
    item: StoredItem, ranks: Sequence[Rank], annotator: str, soft: tuple[Comparison, ...] | None = None
) -> Ranking:
    """The ranks as a record, or the probabilities behind them."""
    return Ranking(
        prompt=item.prompt,
        completions=item.completions,
        ranks=None if soft else tuple(ranks),
        comparisons=soft,
        annotator=annotator,
    )


def _rows(item: StoredItem, ranking: Ranking, options: ExportOptions) -> Iterator[dict[str, Any]]:
    if options.shape == "rankings":
        yield to_json(ranking)
        return
    prompt = to_json(ranking)["prompt"]
    for first, second, better in implied_pairs(ranking.ranks or ()):
        if better:
            chosen, rejected = (first, second) if better > 0 else (second, first)
            yield {
                "prompt": prompt,
                "chosen": _answer(item.prompt, item.completions[chosen]),
                "rejected": _answer(item.prompt, item.completions[rejected]),
                "group": item.key[:16],
                "annotator": ranking.annotator,
            }


def _answer(prompt: str | Turns, completion: str) -> Any:
    """TRL wants the answer to a conversation as a conversation."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def _metrics(labels: Sequence[Label], chosen: Sequence[tuple[StoredItem, Ranking]]) -> dict[str, Any]:
    grouped = by_item(labels)
    joint = [consensus([label.ranks for label in own]) for own in grouped.values()]
    found: dict[str, Any] = {
        "items": len({item.item_id for item, _ in chosen}),
        "labels": len(labels),
        "labelers": len({label.labeler_id for label in labels}),
        "items_adjudicated": sum(ranking.annotator == ADJUDICATED for _, ranking in chosen),
        "items_with_ties": sum(bool(each.ties) for each in joint),
        "items_with_cycles": sum(bool(each.cycles) for each in joint),
    }
    overall = agreement(Ratings.of(labels), num_resamples=1000)
    for name in ("pairwise", "fleiss", "krippendorff_nominal", "krippendorff_ordinal"):
        estimate = getattr(overall, name)
        found[name] = None if estimate is None else json_value([estimate.value, estimate.low, estimate.high])
    return found


def _last_event(project: Project) -> int:
    with project.database.read() as connection:
        return int(connection.execute(select(func.coalesce(func.max(events.c.id), 0))).scalar_one())

"""Labels as training data: rankings in our record format, or pairs as TRL's trainers read them.

What is written is a function of the labels alone, to the byte. Items that somebody flagged are held back.
What people said apart from ranks stands next to the rankings (`given`), and all of it in `given.jsonl`, which
is no training data and tells of flagged items, too, though not their texts.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select

from labeling.analysis.agreement import Ratings, agreement
from labeling.analysis.consensus import consensus
from labeling.analysis.decisions import by_item, decisions
from labeling.analysis.given import KINDS, Given, are_allowed, count_reasons, flags_by_item, read_given
from labeling.sanitize import sanitize_line
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
GIVEN = "given.jsonl"
"""Everything that was said of every item, a line each."""


@dataclass(frozen=True)
class _Chosen:
    """A ranking of an item, and whose it is."""

    item: StoredItem
    ranking: Ranking
    labeler: str | None = None
    """None: of nobody alone."""


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
    include_flagged: tuple[str, ...] = ()
    """Reasons for which an item may be flagged and is exported all the same; `*` stands for anything."""


def export(project: Project, folder: Path, options: ExportOptions) -> ExportManifest:
    """Write `rankings.jsonl` or `pairs.jsonl` and `manifest.json`, which comes last, into `folder`.

    Raises:
        UserError: no item has enough labels, or the folder cannot be written.
    """
    labels, given = read_labels(project), _named(project, options, read_given(project))
    flags = flags_by_item(given)
    held = {item: why for item, why in flags.items() if not are_allowed(why, options.include_flagged)}
    found = list(_rankings(project, labels, options))
    chosen = [each for each in found if each.item.item_id not in held]
    extra = _by_item(given)
    rows = [row for each in chosen for row in _rows(each, extra.get(each.item.item_id, ()), options)]
    if not rows:
        raise _nothing_left(project, found, chosen, held)
    held_here = {each.item.item_id: held[each.item.item_id] for each in found if each.item.item_id in held}
    name = f"{options.shape}.jsonl"
    with storing(folder):
        _make(folder)
        (folder / MANIFEST).unlink(missing_ok=True)
        write_atomic(folder / name, _lines(rows))
        write_atomic(folder / GIVEN, _lines(_given_rows(project, given)))
        manifest = ExportManifest(
            records=name,
            sha256=sha256_file(folder / name),
            num_records=len(rows),
            shape=options.shape,
            labels=options.labels,
            pseudonyms=options.pseudonyms,
            last_event=_last_event(project),
            policy=project.rules.model_dump(mode="json"),
            metrics=_metrics(labels, chosen)
            | _flag_metrics(chosen, flags, held_here, len(given))
            | _pair_metrics(chosen, options),
        )
        write_atomic(folder / MANIFEST, manifest.to_json())
    return manifest


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError("a file stands in the way", where=str(folder), fix="Name a folder.") from None


def _rankings(project: Project, labels: Sequence[Label], options: ExportOptions) -> Iterator[_Chosen]:
    grouped, decided = by_item(labels), decisions(project)
    for item in project.items("item"):
        own = grouped.get(item.item_id, [])
        decision = decided.get(item.item_id)
        if decision is None and len(own) < max(1, options.min_labels):
            continue
        if options.labels == "all":
            for label in own:
                name = _name(project, label.labeler, options)
                soft = label.comparisons if options.shape == "rankings" else None
                yield _Chosen(item, _ranking(item, label.ranks, name, soft), name)
        elif decision is not None:
            yield _Chosen(item, _ranking(item, decision.ranks, ADJUDICATED))
        else:
            yield _Chosen(item, _ranking(item, consensus([label.ranks for label in own]).ranks, CONSENSUS))


def _name(project: Project, labeler: str, options: ExportOptions) -> str:
    return project.pseudonym(labeler) if options.pseudonyms else labeler


def _named(project: Project, options: ExportOptions, given: Sequence[Given]) -> list[Given]:
    """What was said, by the names that the export uses."""
    return [replace(each, labeler=_name(project, each.labeler, options)) for each in given]


def _by_item(given: Sequence[Given]) -> dict[int, list[Given]]:
    """Item → what was said of it apart from ranks."""
    found: defaultdict[int, list[Given]] = defaultdict(list)
    for each in given:
        if each.says_more_than_ranks:
            found[each.item].append(each)
    return dict(found)


def _given_rows(project: Project, given: Sequence[Given]) -> Iterator[dict[str, Any]]:
    keys = {item.item_id: item.key[:16] for item in project.items(*KINDS)}
    for each in given:
        values = each.to_json()
        who: dict[str, Any] = {"item": values.pop("item"), "group": keys[each.item]}
        yield who | {"annotator": values.pop("labeler")} | values


def _beside_ranks(given: Iterable[Given], labeler: str | None) -> list[dict[str, Any]]:
    """What stands next to a ranking: what its labeler said, or everybody, of scores, notes and reasons."""
    found: list[dict[str, Any]] = []
    for each in given:
        if labeler is None or each.labeler == labeler:
            values = each.to_json()
            kept = {name: values[name] for name in ("scores", "note", "reason") if name in values}
            found.append({"annotator": each.labeler, "act": each.act} | kept)
    return found


def _nothing_left(
    project: Project, found: Sequence[_Chosen], chosen: Sequence[_Chosen], held: Mapping[int, Sequence[str]]
) -> UserError:
    if found and not chosen:
        reasons = ", ".join(sanitize_line(reason) for reason in count_reasons(held))
        return UserError(
            f"every item that could be exported is flagged ({reasons})",
            where=project.where,
            fix="To export flagged items on purpose, name their reasons: --include-flagged REASON.",
        )
    what = "no label says that one completion is better" if chosen else "no item has enough labels"
    return UserError(what, where=project.where, fix="Continue ranking, or lower --min-labels.")


def _flag_metrics(
    chosen: Sequence[_Chosen],
    flags: Mapping[int, Sequence[str]],
    held: Mapping[int, Sequence[str]],
    num_given: int,
) -> dict[str, Any]:
    """What was held back of what could have been exported, and what was let through on purpose."""
    return {
        "items_held_back": len(held),
        "held_back_reasons": count_reasons(held),
        "items_flagged_included": len({each.item.item_id for each in chosen} & set(flags)),
        "given": num_given,
    }


def _pair_metrics(chosen: Sequence[_Chosen], options: ExportOptions) -> dict[str, Any]:
    """Pairs of completions that rows of a chosen and a rejected one cannot tell: ties, two failed ones."""
    if options.shape != "pairs":
        return {}
    num_pairs = sum(math.comb(len(each.item.completions), 2) for each in chosen)
    values = [better for each in chosen for _, _, better in implied_pairs(each.ranking.ranks or ())]
    return {"pairs_tied": values.count(0), "pairs_failed_both": num_pairs - len(values)}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


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


def _rows(chosen: _Chosen, given: Sequence[Given], options: ExportOptions) -> Iterator[dict[str, Any]]:
    item, ranking = chosen.item, chosen.ranking
    if options.shape == "rankings":
        beside = _beside_ranks(given, chosen.labeler)
        yield to_json(ranking) | ({"given": beside} if beside else {})
        return
    prompt = to_json(ranking)["prompt"]
    for first, second, better in implied_pairs(ranking.ranks or ()):
        if better:
            chosen_side, rejected_side = (first, second) if better > 0 else (second, first)
            yield {
                "prompt": prompt,
                "chosen": _answer(item.prompt, item.completions[chosen_side]),
                "rejected": _answer(item.prompt, item.completions[rejected_side]),
                "group": item.key[:16],
                "annotator": ranking.annotator,
            }


def _answer(prompt: str | Turns, completion: str) -> Any:
    """TRL wants the answer to a conversation as a conversation."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def _metrics(labels: Sequence[Label], chosen: Sequence[_Chosen]) -> dict[str, Any]:
    grouped = by_item(labels)
    joint = [consensus([label.ranks for label in own]) for own in grouped.values()]
    found: dict[str, Any] = {
        "items": len({each.item.item_id for each in chosen}),
        "labels": len(labels),
        "labelers": len({label.labeler_id for label in labels}),
        "items_adjudicated": sum(each.ranking.annotator == ADJUDICATED for each in chosen),
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

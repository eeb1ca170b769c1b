"""What `status` and `adjudicate` print."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from labeling.analysis.decisions import Dispute, anonymous
from labeling.analysis.dispute_summary import letter
from labeling.analysis.status import LabelerStatus, Status
from labeling.sanitize import sanitize, sanitize_line
from labeling.store.project import Project
from rlhf.model.chat import prompt_text
from rlhf.runs.progress import print_result
from rlhf.statistics.evaluation import Estimate

_PLAIN_WIDTH = 110
UNDETERMINED = "not determined"


def status_json(status: Status) -> str:
    """All of it as JSON; an estimate is {"value", "low", "high"}, or null."""
    values = dataclasses.asdict(dataclasses.replace(status, cohen={}, given=()))
    values["given"] = [each.to_json() for each in status.given]
    values["cohen"] = [
        {"labelers": list(names), "kappa": None if kappa is None else dataclasses.asdict(kappa)}
        for names, kappa in status.cohen.items()
    ]
    return json.dumps(_finite(values), indent=2, ensure_ascii=False)


def print_status(status: Status) -> None:
    """Tables for people."""
    agreed = status.agreement
    rows = [
        ("items: done, begun, in all", f"{status.items_done:,}, {status.items_begun:,}, {status.items:,}"),
        ("labels, and items open now", f"{status.labels:,}, {status.in_progress:,}"),
        (
            "disputed, decided, flagged",
            f"{status.disputed_items:,}, {status.decided_items:,}, {status.flagged_items:,}",
        ),
        *_given_rows(status),
        ("unanimous of compared", f"{agreed.unanimous_items:,} of {agreed.compared_items:,}"),
        ("pairwise agreement", _shown(agreed.pairwise)),
        ("Fleiss's kappa", _shown(agreed.fleiss)),
        ("Krippendorff's alpha, nominal", _shown(agreed.krippendorff_nominal)),
        ("Krippendorff's alpha, ordinal", _shown(agreed.krippendorff_ordinal)),
    ]
    rows += [(f"Cohen's kappa, {a} and {b}", _shown(kappa)) for (a, b), kappa in status.cohen.items()]
    rows += [(f"strength of {sanitize_line(s.model)}", _shown(s.strength)) for s in status.strengths]
    print_result("labels", rows)
    table = Table(title=Text("labelers", style="bold"), title_justify="left")
    for name in ("name", "labels", "open", "skips", "late", "s each", "gold", "agreement", "tau"):
        table.add_column(name, overflow="fold")
    for labeler in status.labelers:
        table.add_row(*(Text(cell) for cell in _cells(labeler)))
    _console().print(table)
    for labeler in status.labelers:
        if labeler.goes_by_position:
            name, tau = sanitize_line(labeler.labeler), labeler.order_shown_tau
            print(
                f"warning: the ranks of {name} follow the order in which answers are shown (tau {tau:+.2f}); "
                "that order is random, so whoever reads them is near 0"
            )


def _given_rows(status: Status) -> list[tuple[str, str]]:
    """What people said apart from ranks, in numbers; `--json` has the words."""
    rows = []
    if status.flag_reasons:
        reasons = [f"{sanitize_line(reason)} ({n:,})" for reason, n in status.flag_reasons.items()]
        rows.append(("flagged, and so not exported", ", ".join(reasons)))
    if status.given:
        scored = sum(each.scores is not None for each in status.given)
        notes = sum(each.note is not None for each in status.given)
        skips = sum(each.act == "skip" for each in status.given)
        rows.append(("labels with scores, notes, skips", f"{scored:,}, {notes:,}, {skips:,}"))
    return rows


def print_disputes(project: Project, found: Sequence[Dispute], *, limit: int) -> None:
    """Each disputed item with its completions in its own order, and every label without a name."""
    print(f"{len(found):,} items are disputed" + (f"; the worst {limit}:" if len(found) > limit else ""))
    for dispute in found[:limit]:
        item = project.item(dispute.item_id)
        print(f"\nitem {item.item_id}: agreement {dispute.agreement:.2f}")
        print(_indented(prompt_text(item.prompt)))
        for number, completion in enumerate(item.completions, start=1):
            print(f" {number}:")
            print(_indented(completion))
        for place, label in enumerate(anonymous(project, item, dispute.labels)):
            note = f"  ({sanitize_line(label.judgement.note)})" if label.judgement.note else ""
            print(f"  {_ranks(label.ranks)}  {letter(place)}{note}")
        remark = " (they beat each other in a circle)" if dispute.consensus.cycles else ""
        print(f"  {_ranks(dispute.consensus.ranks)}  consensus{remark}")


def _cells(labeler: LabelerStatus) -> tuple[str, ...]:
    seconds = labeler.seconds_per_label
    return (
        labeler.labeler,
        f"{labeler.submitted:,}",
        str(labeler.in_progress),
        str(labeler.skipped),
        str(labeler.late),
        "" if seconds is None else f"{seconds:.1f}",
        *(
            "" if each is None else str(each)
            for each in (labeler.gold_accuracy, labeler.agreement_with_others, labeler.tau)
        ),
    )


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return UNDETERMINED
    if math.isinf(estimate.low) and math.isinf(estimate.high):
        return f"{estimate.value:.4f} [{UNDETERMINED}]"
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _ranks(ranks: Sequence[Any]) -> str:
    return " ".join(str(rank) for rank in ranks)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in sanitize(text).split("\n"))


def _console() -> Console:
    console = Console(highlight=False)
    if not sys.stdout.isatty():
        console.width = _PLAIN_WIDTH
    return console


def _finite(value: Any) -> Any:
    """JSON has no infinity: an interval without an end is null there."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value

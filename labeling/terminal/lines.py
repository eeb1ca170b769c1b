"""What stands in the screen's single rows and headings."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from labeling.analysis.dispute_summary import votes
from labeling.sanitize import sanitize_line
from labeling.sessions.labeling_session import LabelerProgress
from labeling.store.judgements import Judgement
from labeling.terminal.background import Arrived, Refused
from labeling.terminal.bars import fill
from labeling.terminal.draft import Draft, rank_sign
from labeling.terminal.style import (
    BAD,
    BOLD,
    DIM,
    FOCUS,
    GOOD,
    OPEN,
    PLAIN,
    TROUBLE,
)
from rlhf.data.records import FAILED, Rank


def status_line(
    labeler: str, progress: LabelerProgress | None, draft: Draft | None
) -> tuple[list[Segment], str]:
    """Who works on what, how much is done and how fast; at the right, how far all are together."""
    name = Segment(f" {sanitize_line(labeler)}", BOLD)
    if progress is None:
        return [name], ""
    pace = f", {progress.pace}" if progress.pace else ""
    item = f" · item {draft.task.item_id}" if draft is not None else ""
    return [name, Segment(f"{item} · {progress.submitted:,} done{pace}", PLAIN)], f"{progress.overall} "


def trouble_line(trouble: Refused, *, warned: bool) -> list[Segment]:
    """That something is not stored yet."""
    what = sanitize_line(trouble.error.what)
    if warned:
        return [Segment(f" Not stored: {what}. q again quits all the same ", TROUBLE)]
    return [Segment(f" Not stored yet, trying again: {what}. Enter tries now ", TROUBLE)]


def message_line(said: str, draft: Draft | None) -> list[Segment]:
    """What was said last, or else the item's note."""
    if said:
        return [Segment(f" {sanitize_line(said)}", BOLD)]
    if draft is not None and draft.judgement.note:
        return [Segment(" Note: ", BOLD), Segment(sanitize_line(draft.judgement.note))]
    return []


def rank_line(draft: Draft | None) -> list[Segment]:
    """Every answer's number with its rank."""
    if draft is None:
        return []
    found = [Segment(" ", PLAIN)]
    for number, rank in enumerate(draft.judgement.ranks):
        style = FOCUS if number == draft.focus else _style(rank)
        score = _score(draft, number)
        quality = "" if score is None else f"/{score}"
        found += [Segment(f" {number + 1}:{rank_sign(rank)}{quality} ", style), Segment(" ", PLAIN)]
    return found


def hints(draft: Draft | None) -> list[Segment]:
    """The keys that matter most."""
    if draft is None:
        text = " Enter look again   u undo   ? help   q quit"
    else:
        text = f" 1-{draft.size} rank  f failed  ← → answer  ↑ ↓ scroll  u undo  Enter submit  ? help"
    return [Segment(text, DIM)]


def greeting(arrived: Arrived, draft: Draft) -> str:
    """What is said when an item comes; nothing about one like any other."""
    if arrived.late:
        return "That was late, and counts all the same"
    if arrived.undone:
        return "Taken back; this is what you had said"
    if draft.judgement != Judgement.empty(draft.size):
        return "You were here before: this is what you had entered"
    if not arrived.progress.submitted:
        return "Welcome. ? shows the instructions and all keys"
    return ""


def after_rank(draft: Draft) -> str:
    """What the next keys would do, where it is not what the focus says alone."""
    said = []
    if draft.judgement.complete:
        said.append(f"All ranked: Enter submits; a digit changes answer {draft.focus + 1}")
    if draft.rules.quality_scores and draft.just_ranked is not None:
        said.append(f"g scores answer {draft.just_ranked + 1}")
    return "; ".join(said)


def prompt_hint(rows_below: int, *, whole: bool) -> str:
    """What stands at the right end of the prompt's heading."""
    if whole:
        return " p: back to the answers "
    return f" {rows_below} more rows: p " if rows_below else ""


def heading(left: Sequence[Segment], right: str, width: int) -> Strip:
    """A rule with something at both ends."""
    return Strip(fill(left, right, width, "─"))


def answer_title(draft: Draft, number: int) -> list[Segment]:
    """An answer's number, its rank, and where somebody decides, what labelers said of it."""
    rank, focused, score = draft.judgement.ranks[number], number == draft.focus, _score(draft, number)
    words = "no rank" if rank is None else "failed" if rank == FAILED else rank_sign(rank)
    said = f" {words}{'' if score is None else f', quality {score}'} "
    given = votes(draft.task, number)
    return [
        Segment("▶ " if focused else "──", BOLD if focused else DIM),
        Segment(f" Answer {number + 1} ", FOCUS if focused else BOLD),
        Segment(said, _style(rank)),
        Segment(f"· {given} " if given else "", PLAIN),
    ]


def _score(draft: Draft, number: int) -> int | None:
    return draft.judgement.scores[number] if draft.judgement.scores else None


def _style(rank: Rank | None) -> Style:
    return OPEN if rank is None else BAD if rank == FAILED else GOOD

"""What stands in the screen's single rows and headings."""

from rich.segment import Segment
from rich.style import Style

from labeling.harmless import harmless_line
from labeling.screen.ballot import Ballot, rank_sign
from labeling.screen.bars import BAD, BOLD, DIM, FOCUS, GOOD, OPEN, PLAIN, TROUBLE
from labeling.screen.desk import Refused
from labeling.testimony import votes
from labeling.workplace import Standing
from rlhf.data.records import FAILED, Rank


def status_line(labeler: str, standing: Standing | None, ballot: Ballot | None) -> tuple[list[Segment], str]:
    """Who works on what, how much is done and how fast; at the right, how far all are together."""
    name = Segment(f" {harmless_line(labeler)}", BOLD)
    if standing is None:
        return [name], ""
    pace = f", {standing.pace}" if standing.pace else ""
    item = f" · item {ballot.task.item_id}" if ballot is not None else ""
    return [name, Segment(f"{item} · {standing.submitted:,} done{pace}", PLAIN)], f"{standing.progress} "


def trouble_line(trouble: Refused, *, warned: bool) -> list[Segment]:
    """That something is not stored yet."""
    what = harmless_line(trouble.error.what)
    if warned:
        return [Segment(f" Not stored: {what}. q again quits all the same ", TROUBLE)]
    return [Segment(f" Not stored yet, trying again: {what}. Enter tries now ", TROUBLE)]


def message_line(said: str, ballot: Ballot | None) -> list[Segment]:
    """What was said last, or else the item's note."""
    if said:
        return [Segment(f" {harmless_line(said)}", BOLD)]
    if ballot is not None and ballot.judgement.note:
        return [Segment(" Note: ", BOLD), Segment(harmless_line(ballot.judgement.note))]
    return []


def rank_line(ballot: Ballot | None) -> list[Segment]:
    """Every answer's number with its rank."""
    if ballot is None:
        return []
    found = [Segment(" ", PLAIN)]
    for number, rank in enumerate(ballot.judgement.ranks):
        style = FOCUS if number == ballot.focus else _style(rank)
        score = _score(ballot, number)
        quality = "" if score is None else f"/{score}"
        found += [Segment(f" {number + 1}:{rank_sign(rank)}{quality} ", style), Segment(" ", PLAIN)]
    return found


def hints(ballot: Ballot | None) -> list[Segment]:
    """The keys that matter most."""
    if ballot is None:
        text = " Enter look again   u undo   ? help   q quit"
    else:
        text = f" 1-{ballot.size} rank  f failed  ← → answer  ↑ ↓ scroll  u undo  Enter submit  ? help"
    return [Segment(text, DIM)]


def answer_title(ballot: Ballot, number: int) -> list[Segment]:
    """An answer's number, its rank, and where somebody decides, what labelers said of it."""
    rank, focused, score = ballot.judgement.ranks[number], number == ballot.focus, _score(ballot, number)
    words = "no rank" if rank is None else "failed" if rank == FAILED else rank_sign(rank)
    said = f" {words}{'' if score is None else f', quality {score}'} "
    given = votes(ballot.task, number)
    return [
        Segment("▶ " if focused else "──", BOLD if focused else DIM),
        Segment(f" Answer {number + 1} ", FOCUS if focused else BOLD),
        Segment(said, _style(rank)),
        Segment(f"· {given} " if given else "", PLAIN),
    ]


def _score(ballot: Ballot, number: int) -> int | None:
    return ballot.judgement.scores[number] if ballot.judgement.scores else None


def _style(rank: Rank | None) -> Style:
    return OPEN if rank is None else BAD if rank == FAILED else GOOD

"""Ranking line by line: for dumb terminals, screen readers and scripts.

One line is one command. Nothing is ever written over, no colour, no control characters. What has been
understood is saved at once, so that a line lost is all that a broken connection can cost.
"""

import textwrap
import time
from collections.abc import Callable, Iterator
from typing import TextIO, TypeVar

from labeling.analysis.dispute_summary import dispute_summary
from labeling.retry import retry
from labeling.sanitize import sanitize, sanitize_line
from labeling.sessions.heartbeat import Heartbeat
from labeling.sessions.labeling_session import LabelerProgress, LabelingSession
from labeling.sessions.session import new_submission
from labeling.store.assignment import NoTask
from labeling.store.database import STORE_PAUSES, StoreError
from labeling.store.judgements import Judgement, Task
from rlhf.data.records import FAILED, Rank
from rlhf.errors import UserError
from rlhf.model.chat import prompt_text

COMMANDS = """\
  2 1 F 3        a rank for each answer, in their order; 1 is best, equal ranks tie, F is failed; submits
  score 5 7 1 6  quality from 1 to 7 of each answer (if the project has scores), before the ranks
  note TEXT      a note on this item, before the ranks
  flag TEXT      something is wrong with this item
  skip TEXT      hand the item back, with a reason
  undo           take back the last submission or skip
  show           show the item again
  ?              the instructions and this list
  quit           stop; the next session continues here
"""
ELSEWHERE = (
    "Not kept: this item is open elsewhere now, or its time ran out. It still counts if you submit it here."
)
WIDTH = 78
MAX_DIGITS = 3

Answer = TypeVar("Answer")


class PlainScreen:
    """Reads commands from `source` and answers on `sink` until there is nothing left, or `quit`."""

    def __init__(
        self,
        session: LabelingSession,
        source: TextIO,
        sink: TextIO,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._session, self._source, self._sink = session, source, sink
        self._sleep, self._heartbeat = sleep, Heartbeat(session)
        self._draft = Judgement.empty(0)

    def run(self) -> None:
        """Work until the input ends or the labeler quits."""
        self._say(f"{self._session.labeler}: ? explains, quit stops.")
        with self._heartbeat:
            task = self._session.next()
            while not isinstance(task, NoTask):
                self._heartbeat.hold(task)
                self._show(task)
                following = self._on_one(task)
                if following is None:
                    return
                task = following
        self._say(task.message)

    def _on_one(self, task: Task) -> Task | NoTask | None:
        """Work on one item; returns the next, or None to stop."""
        self._draft = task.draft
        for line in self._lines():
            word, _, rest = line.partition(" ")
            try:
                if word in ("quit", "q"):
                    return None
                if word == "undo":
                    back = self._session.undo()
                    if back is not None:
                        return back
                    self._say("There is nothing to undo.")
                elif word == "skip":
                    self._session.skip(task, rest)
                    return self._until_stored(self._session.next)
                elif _are_ranks(word):
                    return self._submit(task, line)
                else:
                    self._lesser(task, word, rest)
            except UserError as error:
                self._say(f"{error.what}. {error.fix or ''}".rstrip())
        return None

    def _lesser(self, task: Task, word: str, rest: str) -> None:
        """Commands after which the item stays."""
        draft = self._draft
        if word == "flag":
            self._session.flag(task, rest)
            self._say("Flagged.")
        elif word == "note":
            self._keep(task, Judgement(draft.ranks, draft.scores, rest.strip()))
        elif word == "score":
            self._keep(task, self._scored(task, _scores(rest)))
        elif word == "show":
            self._show(task)
        elif word in ("?", "help"):
            self._say(sanitize(self._session.project.instructions))
            self._say(COMMANDS)
        else:
            self._say(f"There is no command {sanitize_line(word)[:20]}; ? lists them.")

    def _scored(self, task: Task, scores: tuple[int, ...]) -> Judgement:
        """The draft with these scores; a refusal says that numbers alone would be ranks."""
        found = Judgement(self._draft.ranks, scores, self._draft.note)
        try:
            found.checked(len(task.completions), self._session.rules)
        except UserError as error:
            again = "Nothing is kept: begin with `score` again, numbers alone are ranks."
            raise UserError(error.what, fix=f"{error.fix or ''} {again}".strip()) from None
        return found

    def _keep(self, task: Task, draft: Judgement) -> None:
        kept = self._session.save(task, draft)
        self._draft = draft
        self._say("Noted." if kept else ELSEWHERE)

    def _submit(self, task: Task, line: str) -> Task | NoTask:
        """Hand in and take the next item in one step, so that no later line can be for the old one."""
        judgement = Judgement(parse_ranks(line), self._draft.scores, self._draft.note)
        judgement.final(len(task.completions), self._session.rules)
        submission = new_submission()
        receipt, following = self._until_stored(
            lambda: self._session.submit_and_next(task, judgement, submission=submission)
        )
        self._say("Submitted late, and counted." if receipt.late else "Submitted.")
        return following

    def _until_stored(self, call: Callable[[], Answer]) -> Answer:
        """Make a call again until the database takes it; no line is read meanwhile."""

        def wait(error: StoreError, seconds: float) -> None:
            self._say(f"{error.what}. Trying again; Ctrl-C stops.")
            self._sleep(seconds)

        return retry(call, StoreError, STORE_PAUSES, wait)

    def _show(self, task: Task) -> None:
        self._say("")
        self._say(_progress(self._session.progress()))
        self._say("PROMPT")
        self._block(prompt_text(task.prompt))
        for number, completion in enumerate(task.completions, start=1):
            self._say(f"ANSWER {number} of {len(task.completions)}")
            self._block(completion)
        for text in dispute_summary(task):
            self._say("LABELS")
            self._block(text)
        if any(rank is not None for rank in task.draft.ranks):
            entered = " ".join("-" if rank is None else str(rank) for rank in task.draft.ranks)
            self._say(f"Entered so far: {entered}")
        if any(score is not None for score in task.draft.scores):
            self._say(f"Scores so far: {' '.join('-' if s is None else str(s) for s in task.draft.scores)}")
        if task.draft.note:
            self._say(f"Note: {sanitize_line(task.draft.note)}")
        self._say("Ranks?")

    def _block(self, text: str) -> None:
        for line in sanitize(text).split("\n"):
            for part in textwrap.wrap(line, WIDTH, replace_whitespace=False) or [""]:
                self._say(f"  {part}".rstrip())

    def _say(self, text: str) -> None:
        self._sink.write(text.encode(self._encoding, "backslashreplace").decode(self._encoding) + "\n")
        self._sink.flush()

    @property
    def _encoding(self) -> str:
        return self._sink.encoding or "utf-8"

    def _lines(self) -> Iterator[str]:
        for line in self._source:
            if line.strip():
                yield line.strip()


def _progress(progress: LabelerProgress) -> str:
    pace = f", {progress.pace}" if progress.pace else ""
    return f"--- {progress.submitted} submitted by you{pace}; {progress.overall}"


def parse_ranks(line: str) -> tuple[Rank, ...]:
    """Ranks as people type them: `1 2 F`, `1,2,f`.

    Raises:
        UserError: something else stands there.
    """
    found: list[Rank] = []
    for word in line.replace(",", " ").split():
        if word in ("F", "f"):
            found.append(FAILED)
        elif word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS:
            found.append(int(word))
        else:
            raise UserError(f"{sanitize_line(word)[:20]} is no rank", fix="Ranks are 1, 2, ... and F.")
    return tuple(found)


def _are_ranks(word: str) -> bool:
    """Whether a line that begins with this word is meant as ranks."""
    return word[:1].isdigit() or word.split(",")[0] in ("F", "f")


def _scores(text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS for word in words):
        fix = "Give one for each answer, after `score`: numbers alone are ranks."
        raise UserError("scores are whole numbers from 1 to 7", fix=fix)
    return tuple(int(word) for word in words)

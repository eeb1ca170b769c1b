"""A scripted labeler: ranks by a scorer with a known error rate, through the same session as people."""

import random
from dataclasses import dataclass

from labeling.generation.rankings import ScriptedLabeler
from labeling.sessions.session import Session
from labeling.store.assignment import NoTask
from labeling.store.judgements import Judgement, Task, dumps
from labeling.store.project import Project
from rlhf.data.records import prompt_key
from rlhf.data.scorers import Scorer
from rlhf.model.chat import prompt_text


@dataclass(frozen=True, kw_only=True)
class Script:
    """How a scripted labeler works."""

    scorer: Scorer
    error_rate: float = 0.0
    """Probability that one comparison of two completions comes out wrong."""
    tie_width: float = 0.0
    """Scores that differ by no more look equal, where the project has ties."""
    max_items: int | None = None
    """Stop after so many; None: when nothing is left."""
    seed: int = 0


def simulate(project: Project, labeler: str, script: Script) -> int:
    """Rank what the project gives this labeler, and return the number of submissions.

    The ranks of an item depend on its content, the labeler and the seed alone, so a simulation that was
    killed resumes to the same labels.

    Raises:
        UserError: the scorer fails, or the labeler's name cannot be one.
    """
    num_done = 0
    with Session(project, labeler) as session:
        while script.max_items is None or num_done < script.max_items:
            task = session.next()
            if isinstance(task, NoTask):
                break
            ranks = _ranks(project, session.labeler, script, task)
            session.submit(task, Judgement(ranks), submission=f"{session.session_id}:{task.item_id}")
            num_done += 1
    return num_done


def _ranks(project: Project, labeler: str, script: Script, task: Task) -> tuple[int, ...]:
    tie_width = script.tie_width if project.rules.ties else -1.0
    scores = script.scorer([prompt_text(task.prompt)] * len(task.completions), list(task.completions))
    # In an order of the labeler's own, but not the order shown, which depends on the project's seed.
    order = sorted(range(len(scores)), key=lambda k: (task.completions[k], k))
    content = dumps([task.completions[k] for k in order])
    rng = random.Random(f"{script.seed}|{labeler}|{prompt_key(task.prompt)}|{content}")
    ranked = ScriptedLabeler(script.error_rate, tie_width).ranks([scores[k] for k in order], rng)
    ranks = [0] * len(scores)
    for k, rank in zip(order, ranked, strict=True):
        ranks[k] = rank
    return tuple(ranks)

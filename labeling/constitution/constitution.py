"""A constitution: written principles and worked examples, known by the hash of what they say."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from pydantic import model_validator

from rlhf.errors import UserError
from rlhf.settings.groups import Settings, setting
from rlhf.settings.recipe import load_settings
from rlhf.settings.wording import NAME_PATTERN


class Principle(Settings):
    """One thing that answers are to be, as three requests to a model."""

    id: str = setting(pattern=NAME_PATTERN)
    """Its name in records and reports."""
    critique_request: str = setting(min_length=1)
    """Asks what is wrong with the last response, by this principle."""
    revision_request: str = setting(min_length=1)
    """Asks for the response once more, without what was wrong."""
    comparison_question: str = setting(min_length=1)
    """Asks which of two responses is the better one, by this principle."""
    weight: float = setting(1.0, gt=0)
    """How often it is drawn, relative to the others."""
    tags: list[str] = []
    """What it is about, so that a recipe may use some principles only."""


class CritiqueExample(Settings):
    """A response, its critique and its revision, as they should be."""

    prompt: str
    response: str
    principle: str
    """Id of the principle whose requests were made."""
    critique: str
    revision: str


class ComparisonExample(Settings):
    """Two responses, a train of thought and the right answer."""

    prompt: str
    first: str
    second: str
    principle: str
    """Id of the principle whose question was asked."""
    reasoning: str
    better: int = setting(ge=1, le=2)
    """1 if the first is the better one, 2 if the second is."""


class Examples(Settings):
    """Worked examples."""

    critiques: list[CritiqueExample] = []
    """Shown before a critique and a revision."""
    comparisons: list[ComparisonExample] = []
    """Shown before a comparison."""


class Articles(Settings):
    """The file of a constitution."""

    name: str = setting(min_length=1)
    """What it is called."""
    version: str = setting(min_length=1)
    """Changes when the text does; what counts is the hash of the text itself."""
    principles: list[Principle] = setting(min_length=1)
    """In any order."""
    examples: str | None = None
    """File of worked examples, next to this one."""
    evasions: list[str] = []
    """Phrases by which the report knows a response that evades the question; empty: common English ones."""

    @model_validator(mode="after")
    def _ids_differ(self) -> "Articles":
        twice = [name for name, n in Counter(each.id for each in self.principles).items() if n > 1]
        if twice:
            raise ValueError(f"two principles have the id `{twice[0]}`")
        return self


@dataclass(frozen=True)
class Constitution:
    """Principles that may be drawn, and examples."""

    articles: Articles
    examples: Examples
    principles: tuple[Principle, ...]

    @property
    def annotator(self) -> str:
        """Who labels by it, as records name them."""
        return f"constitution@{self.sha256[:12]}"

    @cached_property
    def sha256(self) -> str:
        """Hash of everything it says; comments, and how the file is laid out, are no part of it."""
        said = {
            "articles": self.articles.model_dump(mode="json", exclude={"examples"}),
            "examples": self.examples.model_dump(mode="json"),
            "principles": [each.id for each in self.principles],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def by_id(self, name: str) -> Principle:
        return next(each for each in self.articles.principles if each.id == name)

    def draw(self, num: int, rng: Random) -> list[Principle]:
        """So many different principles (all, if there are fewer), by their weights."""
        left, drawn = list(self.principles), list[Principle]()
        while left and len(drawn) < num:
            [one] = rng.choices(left, [each.weight for each in left])
            left.remove(one)
            drawn.append(one)
        return drawn


def load_constitution(path: Path, *, tags: Sequence[str] = ()) -> Constitution:
    """Read a constitution; with `tags`, only principles that have one of them will be drawn.

    Raises:
        UserError: no such file, malformed YAML, an unknown key, an example of an unknown principle, or no
            principle with such a tag.
    """
    articles = load_settings(path, Articles, what="the constitution")
    examples = Examples()
    if articles.examples is not None:
        path_of_examples = path.parent / articles.examples
        examples = load_settings(path_of_examples, Examples, what="the file of examples")
        _check_examples(articles, examples, path_of_examples)
    principles = [each for each in articles.principles if not tags or set(tags) & set(each.tags)]
    if not principles:
        known = sorted({tag for each in articles.principles for tag in each.tags})
        raise UserError(
            f"no principle has one of the tags {', '.join(tags)}",
            where=str(path),
            fix=f"Its tags are: {', '.join(known)}." if known else "It has no tags: leave `tags` out.",
        )
    return Constitution(articles, examples, tuple(principles))


def _check_examples(articles: Articles, examples: Examples, path: Path) -> None:
    known = [each.id for each in articles.principles]
    named = [each.principle for each in examples.critiques] + [
        each.principle for each in examples.comparisons
    ]
    for name in named:
        if name not in known:
            raise UserError(
                f"an example names the principle `{name}`",
                where=str(path),
                fix=f"Name one of the constitution's: {', '.join(known)}.",
            )

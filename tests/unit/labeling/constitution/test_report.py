"""The report's page: whatever stands in the texts, it needs nothing else and does nothing else."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from labeling.constitution.charts import bars, columns, lines
from labeling.constitution.constitution import load_constitution
from labeling.constitution.feedback import Chosen, Written
from labeling.constitution.metrics import preference_metrics, revision_metrics, running_metrics
from labeling.constitution.people import compare_with_people
from labeling.constitution.preferences import Judged, PairQuestion, PairReply
from labeling.constitution.prompts import GroupedPrompt
from labeling.constitution.report import preferences_page, revisions_page
from labeling.constitution.revisions import Draft, Round
from labeling.store.items import Item
from rlhf.data.records import Ranking

HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script> \x1b[31m & "quotes"'


class Tags(HTMLParser):
    """Every tag of a page, and its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check(page: str) -> None:
    tags = Tags(page).found
    names = {name for name, _ in tags}
    assert {"svg", "table", "details"} <= names
    assert names.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not any(key in ("src", "href") or key.startswith("on") for _, own in tags for key in own)
    assert "&lt;script" in page
    assert "\x1b" not in page


def test_a_page_of_revisions_stands_alone_and_shows_hostile_texts_as_texts(root: Path) -> None:
    constitution = load_constitution(root / "configs" / "constitutions" / "tiny.yaml")
    one = Round(1, "helps", 1, 2, Written(text=HOSTILE), Written(text="Better."))
    drafts = [
        Draft(GroupedPrompt(HOSTILE, group), 0, Written(text=HOSTILE), "m", 1, (one,))
        for group in ("a", "<b>")
    ]
    found = {
        "revisions": revision_metrics(drafts, constitution, lambda p, r: [float(len(t)) for t in r]),
        "running": running_metrics({"answers": 4, "status_429": 1}, None),
    }
    check(revisions_page(found, drafts, constitution, HOSTILE))
    assert found["revisions"]["rounds"][1]["score_mean"] == len("Better.")
    assert found["running"]["failures"] == {"status_429": 1}


def test_a_page_of_preferences_stands_alone_and_shows_hostile_texts_as_texts(root: Path) -> None:
    constitution = load_constitution(root / "configs" / "constitutions" / "tiny.yaml")
    item = Item(prompt=HOSTILE, completions=(HOSTILE, "b"))
    sure, unsure = Chosen(logprobs=(-0.1, -2.3), mass=0.9), Chosen(logprobs=(-1.0, -0.5), mass=0.8)
    reply = PairReply(PairQuestion(0, 0, 1, constitution.principles[0]), (sure, unsure), (None, None))
    judged = [Judged(item, (reply,), ((0, 1, 0.8),))]
    people = [Ranking(prompt=item.prompt, completions=item.completions, ranks=(1, 2))]
    found = {
        "preferences": preference_metrics(judged, compare_with_people(judged, people, "c"), None),
        "running": running_metrics({"answers": 2}, None),
    }
    check(preferences_page(found, judged, constitution, HOSTILE))
    assert found["preferences"]["people"]["agreement"]["value"] == 1


def test_undecided_opinions_count_in_the_certainty(root: Path) -> None:
    constitution = load_constitution(root / "configs" / "constitutions" / "tiny.yaml")
    item = Item(prompt="p", completions=("a", "b"))
    question = PairQuestion(0, 0, 1, constitution.principles[0])
    even = Chosen(logprobs=(math.log(0.5), math.log(0.5)))
    first, second = (Chosen(logprobs=(math.log(p), math.log(1 - p))) for p in (0.88, 0.12))
    tie = PairReply(question, (even, even), (None, None))
    replies = (PairReply(question, (first, second), (None, None)), *[tie] * 9)
    found = preference_metrics([Judged(item, replies, ((0, 1, 0.6),))], None, None)
    [own] = found["by_principle"].values()
    assert own["certainty_mean"] == pytest.approx(0.76 / 10)
    assert own["consistent_share"] == 1


def test_pictures_are_drawn_inside_their_frame() -> None:
    pictures = [
        bars(["a <b>", "c"], [3, 0]),
        columns([0, 0, 0], 0, 1, "x"),
        lines([("s", [(0, 0.2), (1, 0.9)])], "x", unit_square=True),
        lines([("flat", [(0, 0.0)])], "x"),
    ]
    for picture in pictures:
        numbers = [float(n) for n in re.findall(r'(?:cx|cy|x|y|width|height)="([-0-9.]+)"', picture)]
        assert all(0 <= n <= 520 for n in numbers)
        assert "nan" not in picture
    assert "&lt;b&gt;" in pictures[0]

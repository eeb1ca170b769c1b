"""Where every key lands, against a model that knows nothing of the program: a table and a pointer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textual.events import Key

from labeling.analysis.given import read_given
from labeling.sessions.session import Session
from labeling.store.judgements import Judgement, Task
from labeling.store.project import Project
from labeling.store.rules import LabelingRules
from labeling.terminal.ahead import AHEAD_SECONDS, TypedAhead
from labeling.terminal.draft import Draft
from rlhf.errors import UserError
from tests.support.screens import Screen, play, shown, small_project

New = Callable[..., Project]


@dataclass
class Model:
    """What a labeler would write on paper: two columns, a finger on a row, a score that is asked for."""

    size: int
    ties: bool
    ranks: list[Any] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    finger: int = 0
    back_to: int | None = None
    """While a score is asked for: where the finger was before."""
    ranked: int | None = None
    """The row whose rank was written by the last key, unless its score was written just before."""
    scored_here: bool = False
    pages: list[tuple[list[Any], list[Any], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranks = [None] * self.size
        self.scores = [None] * self.size

    def press(self, key: str) -> None:
        if self.back_to is not None:
            if key in "123456789":
                if key in "1234567":
                    self._score(int(key))
                return
            if key in ("0", "g"):
                return  # there is no quality 0, and the score is being asked for already
            self._point(self.back_to)
            if key in ("backspace", "u", "escape"):
                return
        if key in "123456789" and key <= str(self.size):
            self._rank(int(key))
        elif key == "f":
            self._rank("F")
        elif key in ("0", "backspace"):
            self._clear()
        elif key == "g":
            back_to = self.finger
            self._point(self.finger if self.ranked is None else self.ranked)
            self.back_to = back_to
        elif key in ("right", "left"):
            self._point((self.finger + (1 if key == "right" else -1)) % self.size)
        elif key == "u" and self.pages:
            self.ranks, self.scores, finger = self.pages.pop()
            self._point(finger)

    def _point(self, row: int) -> None:
        self.finger, self.back_to, self.ranked, self.scored_here = row, None, None, False

    def _turn_page(self) -> None:
        self.pages.append((list(self.ranks), list(self.scores), self.finger))

    def _onward(self) -> None:
        rows = [(self.finger + step) % self.size for step in range(1, self.size + 1)]
        self._point(next((row for row in rows if self.ranks[row] is None), rows[0]))

    def _rank(self, rank: Any) -> None:
        self._turn_page()
        row, scored = self.finger, self.scored_here
        if not self.ties and rank != "F":
            for other in range(self.size):
                if other != row and self.ranks[other] == rank:
                    self.ranks[other] = None if self.ranks[row] == "F" else self.ranks[row]
        self.ranks[row] = rank
        self._onward()
        self.ranked = None if scored else row

    def _score(self, score: int) -> None:
        self._turn_page()
        self.scores[self.finger] = score
        if self.ranks[self.finger] is None:
            self._point(self.finger)
            self.scored_here = True
        else:
            self._onward()

    def _clear(self) -> None:
        if (self.ranks[self.finger], self.scores[self.finger]) != (None, None):
            self._turn_page()
        self.ranks[self.finger] = self.scores[self.finger] = None
        self._point(self.finger)


KEYS = st.sampled_from([*"1234567890fgu", "backspace", "right", "left", "escape"])
TYPED = st.lists(st.one_of(KEYS, st.sampled_from([*"1234"])), max_size=40)


def new_draft(size: int, *, ties: bool) -> Draft:
    task = Task(1, "q", tuple(f"answer {n}" for n in range(size)), Judgement.empty(size), 0.0)
    return Draft(task, LabelingRules(ties=ties, quality_scores=True))


def press(draft: Draft, key: str) -> None:
    """What the screen makes of a key."""
    moves = {"right": 1, "left": -1}
    try:
        if key.isdigit():
            draft.digit(int(key))
        elif key == "g":
            draft.ask_score()
        elif draft.is_scoring and key in ("backspace", "u", "escape"):
            draft.leave_score()
        else:
            draft.leave_score()
            if key in moves:
                draft.focus = (draft.focus + moves[key]) % draft.size
            elif key == "f":
                draft.rank("F")
            elif key == "backspace":
                draft.clear()
            elif key == "u":
                draft.back()
    except UserError:
        return


def as_table(judgement: Judgement) -> tuple[list[Any], list[Any]]:
    scores = list(judgement.scores) or [None] * len(judgement.ranks)
    return list(judgement.ranks), scores


@given(st.integers(2, 9), st.booleans(), TYPED)
def test_the_draft_is_always_what_a_table_and_a_finger_say(size: int, ties: bool, typed: list[str]) -> None:
    draft, model = new_draft(size, ties=ties), Model(size, ties)
    for key in typed:
        before = draft.focus
        ranks = draft.judgement.ranks
        press(draft, key)
        model.press(key)
        assert as_table(draft.judgement) == (model.ranks, model.scores)
        assert (draft.focus, draft.is_scoring) == (model.finger, model.back_to is not None)
        if ties and key != "u":  # undone, many may change; else no rank but that of the answer in focus does
            changed = [n for n in range(size) if draft.judgement.ranks[n] != ranks[n]]
            assert changed in ([], [before], [model.back_to])


@given(st.permutations([1, 2, 3, 4]), st.permutations([1, 2, 3, 4]), st.integers(0, 3), st.booleans())
def test_a_ranking_typed_over_a_ranking_is_the_one_typed_last(
    first: list[int], second: list[int], start: int, ties: bool
) -> None:
    draft = new_draft(4, ties=ties)
    draft.focus = start
    for digit in (*first, *second):
        draft.digit(digit)
    assert draft.judgement.complete
    assert list(draft.judgement.ranks[start:] + draft.judgement.ranks[:start]) == second


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ties=st.booleans(), typed=TYPED)
def test_keys_on_the_screen_do_what_the_model_does_and_what_is_stored_is_what_is_shown(
    tmp_path_factory: pytest.TempPathFactory, ties: bool, typed: list[str]
) -> None:
    where = str(tmp_path_factory.mktemp("keys") / "project")
    model = Model(4, ties)

    async def story() -> None:
        async with shown(session) as screen:
            for key in typed:
                if key == "u" and model.back_to is None and not model.pages:
                    continue  # this one asks the database
                await screen.type(key)
                model.press(key)
                at = f"▶  Answer {model.finger + 1}"
                assert at in screen.text, (key, screen.text)
                assert rank_row(model) in screen.text, (key, screen.text)
            await screen.settled()

    texts = [f"answer {letter}" for letter in "abcd"]
    with small_project(where, *texts, ties=ties, quality_scores=True) as project:
        with Session(project, "ann") as session:
            asyncio.run(story())
        with Session(project, "ann") as again:
            task = again.next()
    assert isinstance(task, Task)
    assert as_table(task.draft) == (model.ranks, model.scores)


def rank_row(model: Model) -> str:
    """The row of ranks as the screen has it."""
    signs = {None: "·", "F": "F", 1: "1st", 2: "2nd", 3: "3rd", 4: "4th"}
    cells = [
        f"{n}:{signs[rank]}{'' if score is None else f'/{score}'}"
        for n, (rank, score) in enumerate(zip(model.ranks, model.scores, strict=True), start=1)
    ]
    return "   ".join(cells)


def test_digits_on_a_ranked_item_move_on_and_say_where(new: New) -> None:
    async def story(screen: Screen) -> None:
        await screen.press(*"4321")
        assert "All ranked: Enter submits; a digit changes answer 1" in screen.text
        await screen.press(*"4321")
        assert "1:4th   2:3rd   3:2nd   4:1st" in screen.text
        await screen.press(*"12")
        assert "1:1st   2:2nd   3:2nd   4:1st" in screen.text
        assert "▶  Answer 3" in screen.text

    with Session(new(*(f"answer {n}" for n in "abcd")), "ann") as session:
        play(session, story)


def test_a_score_after_a_rank_is_of_the_answer_ranked_and_its_place_is_shown_first(new: New) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("2")
        assert "g scores answer 1" in screen.text
        await screen.press("g")
        assert "▶  Answer 1" in screen.text
        assert "Quality of answer 1" in screen.text
        await screen.press("6")
        assert "1:2nd/6   2:·" in screen.text
        assert "▶  Answer 2" in screen.text
        await screen.press("g", "5", "1", "g")  # the score first: the next is about the next answer
        assert "Quality of answer 3" in screen.text
        await screen.press("escape", "right", "left", "g", "4")
        assert "1:2nd/6   2:1st/5   3:·/4" in screen.text

    with Session(new(quality_scores=True), "ann") as session:
        play(session, story)


@pytest.mark.parametrize("refused", ["9", "8", "0"])
def test_a_score_that_is_none_is_asked_for_again_and_is_no_rank(new: New, refused: str) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("1", "right", "left", "g", refused)
        assert "from 1 to 7" in screen.text
        await screen.press("2")
        assert "1:1st   2:·/2   3:·" in screen.text
        await screen.press("g", "9", "backspace", "u")
        assert "1:1st   2:·   3:·" in screen.text

    with Session(new(quality_scores=True), "ann") as session:
        play(session, story)


def test_nothing_is_entered_on_answers_that_are_out_of_sight(new: New, tmp_path: Path) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("p", "1", "f", "g", "0", "enter")
        assert "out of sight: p goes back" in screen.text
        assert "1:·   2:·   3:·" in screen.text
        await screen.press("right", "right", "p")
        assert "▶  Answer 3" in screen.text
        await screen.press("1")
        assert "1:·   2:·   3:1st" in screen.text

    with Session(new(*("word " * 4000,) * 3, quality_scores=True), "ann") as session:
        play(session, story)


def test_a_rank_typed_right_after_a_page_is_of_the_answer_that_the_page_shows(new: New) -> None:
    long = tuple("\n".join(f"{name}{n}" for n in range(60)) for name in "abc")

    async def story(screen: Screen) -> None:
        burst(screen, *["pagedown"] * 6, "1")
        await screen.until(lambda: "2:1st" in screen.text)
        assert "1:·" in screen.text

    with Session(new(*long), "ann") as session:
        play(session, story)


def test_capital_letters_are_the_same_keys_and_an_unknown_key_is_said(new: New) -> None:
    async def story(screen: Screen) -> None:
        await screen.press("2", "F", "1")
        assert "1:2nd   2:F   3:1st" in screen.text
        await screen.press("z")
        assert "z means nothing here" in screen.text

    with Session(new(), "ann") as session:
        play(session, story)


def test_of_keys_typed_before_their_item_came_none_is_taken_for_another_answer() -> None:
    now = [0.0]
    ahead = TypedAhead(clock=lambda: now[0])
    assert ahead.takes("digit")
    assert not ahead.takes("leave")
    ahead.waiting = False
    now[0] += AHEAD_SECONDS / 2
    assert ahead.takes("digit")  # typed together with the first
    assert ahead.takes("submit")
    now[0] += 1.1 * AHEAD_SECONDS
    assert not ahead.takes("digit")


def test_keys_typed_after_undo_are_not_for_the_item_that_goes_away(new: New) -> None:
    project = new()

    async def story(screen: Screen) -> None:
        await screen.press("1", "2", "3", "enter")
        with project.database.write():  # the item before cannot come yet
            await screen.type("u", "3")
            await asyncio.sleep(0.3)
            assert "Taking back" in screen.text
        await screen.until(lambda: "question 0" in screen.text)
        assert "1:1st   2:2nd   3:3rd" in screen.text
        await asyncio.sleep(AHEAD_SECONDS)
        await screen.press("enter")
        assert "question 1" in screen.text
        assert "1:·   2:·   3:·" in screen.text
        await screen.press("u", "u")
        await screen.until(lambda: "nothing to take back" in screen.text)
        await screen.press("2")
        assert "1:2nd" in screen.text  # the item is there again, and takes keys

    with Session(project, "ann") as session:
        play(session, story)


def burst(screen: Screen, *keys: str) -> None:
    """Type keys that are all there before the first is handled."""
    for key in keys:
        screen.app.post_message(Key(key, key if len(key) == 1 else None))


def test_keys_after_a_question_are_no_part_of_its_answer_and_none_is_lost(new: New) -> None:
    async def story(screen: Screen) -> None:
        burst(screen, "c", *"hm1", "enter", "2", "x", *"bad1", "enter", "1", "c", "y", "escape", "f")
        await screen.until(lambda: "1:2nd   2:1st   3:F" in screen.text)
        await screen.settled()
        burst(screen, "left", "c", "z", "enter")
        await screen.until(lambda: "Note: hm1z" in screen.text)

    project = new()
    with Session(project, "ann") as session:
        play(session, story)
    [flag] = [each for each in read_given(project) if each.act == "flag"]
    assert flag.reason == "bad1"


def test_keys_after_the_instructions_are_for_the_item_again_and_none_is_lost(new: New) -> None:
    async def story(screen: Screen) -> None:
        burst(screen, "question_mark", "1", "escape", "3", "2")
        await screen.until(lambda: "1:3rd   2:2nd   3:·" in screen.text)

    with Session(new(), "ann") as session:
        play(session, story)

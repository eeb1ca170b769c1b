"""What a labeler's session does to the store, on SQLite and on a real PostgreSQL."""

from typing import Any

import pytest

from labeling.sessions.session import Session, WorkingTime, new_submission
from labeling.store.assignment import shown_order
from labeling.store.judgements import Judgement, Task
from labeling.store.labels import read_labels
from rlhf.errors import UserError
from tests.unit.labeling.working import RANKS, handed_in, held, kinds, reason, state, taken

# Submissions


def test_a_label_is_kept_in_the_items_own_order(make: Any) -> None:
    project = make(num_items=1, num_completions=5)
    with Session(project, "ann") as session:
        task = taken(session)
        assert sorted(task.completions) == [f"answer {k}" for k in range(5)]
        # Each completion's rank is its own number plus one, wherever it is shown.
        ranks = tuple(int(completion[-1]) + 1 for completion in task.completions)
        session.submit(task, Judgement(ranks), submission="a")
    [label] = read_labels(project)
    assert label.ranks == (1, 2, 3, 4, 5)


def test_labelers_see_different_orders_and_each_the_same_again(make: Any) -> None:
    project = make(num_items=1, num_completions=9, overlap=4)
    orders = [taken(Session(project, name)).completions for name in ("ann", "bo", "cy", "di")]
    assert len(set(orders)) == 4
    assert (
        shown_order(0, "ann", "key", 9) == shown_order(0, "ann", "key", 9) != shown_order(1, "ann", "key", 9)
    )


def test_a_submission_that_is_sent_again_adds_nothing(make: Any) -> None:
    project = make()
    with Session(project, "ann") as session:
        task = taken(session)
        first = session.submit(task, RANKS, submission="act 1")
        again = session.submit(task, RANKS, submission="act 1")
        other = Session(project, "ann").submit(task, RANKS, submission="act 1")
    assert (first.repeated, again.repeated, other.repeated) == (False, True, True)
    assert first.event_id == again.event_id == other.event_id
    assert kinds(project, "submitted") == ["submitted"]
    assert held(project) == [1, 0, 0]


def test_a_submissions_name_cannot_be_used_for_another_item_or_labeler(make: Any) -> None:
    project = make(overlap=2)
    with Session(project, "ann") as ann, Session(project, "bo") as bo:
        ann.submit(taken(ann), RANKS, submission="act 1")
        for session in (ann, bo):
            with pytest.raises(UserError, match="stands for another one"):
                session.submit(taken(session), RANKS, submission="act 1")
    assert len(read_labels(project)) == 1


def test_a_second_submission_takes_the_place_of_the_first_which_stays_on_record(make: Any) -> None:
    project = make()
    with Session(project, "ann") as session:
        task = taken(session)
        session.submit(task, RANKS, submission="1")
        session.submit(task, Judgement((2, 1, 3)), submission="2")
    [label] = read_labels(project)
    assert sorted(map(str, label.ranks)) == ["1", "2", "3"]
    assert kinds(project, "submitted") == ["submitted"] * 2
    assert held(project) == [1, 0, 0]


@pytest.mark.parametrize(
    ("judgement", "what"),
    [
        (Judgement((1, 2)), "2 ranks for 3 completions"),
        (Judgement((1, 2, None)), "completion 3 has no rank"),
        (Judgement((1, 2, 0)), "completion 3 has rank 0"),
        (Judgement((1, 2, 4)), "completion 3 has rank 4"),
        (Judgement((1, 2, True)), "completion 3 has rank True"),
        (Judgement((1, 2, "G")), "completion 3 has rank 'G'"),  # type: ignore[arg-type]
        (Judgement((1, 1, 3)), "two completions share a rank"),
        (Judgement((1, 2, 3), (7, 7, 7)), "no quality scores"),
        (Judgement((1, 2, 3), (), "x" * 10_001), "the note has 10,001 characters"),
    ],
)
def test_a_judgement_that_does_not_fit_is_refused_and_nothing_is_stored(
    make: Any, judgement: Judgement, what: str
) -> None:
    project = make(ties=False)
    with Session(project, "ann") as session:
        with pytest.raises(UserError) as caught:
            session.submit(taken(session), judgement, submission="1")
        assert what in caught.value.what
    assert read_labels(project) == []


def test_quality_scores_follow_their_completions(make: Any) -> None:
    project = make(num_items=1, quality_scores=True)
    with Session(project, "ann") as session:
        task = taken(session)
        numbers = tuple(int(completion[-1]) + 1 for completion in task.completions)
        session.submit(task, Judgement(numbers, numbers, "seen"), submission="1")
        with pytest.raises(UserError, match="score 8"):
            session.submit(task, Judgement(numbers, (1, 8, 2)), submission="2")
    [label] = read_labels(project)
    assert label.judgement == Judgement((1, 2, 3), (1, 2, 3), "seen")


def test_an_item_that_was_never_given_cannot_be_labelled(make: Any) -> None:
    project = make(overlap=2)
    task = taken(Session(project, "ann"))
    with pytest.raises(UserError, match="was never given to mallory"):
        Session(project, "mallory").submit(task, RANKS, submission="1")


# Drafts, undo, skip, flag


def test_a_draft_survives_a_killed_terminal_and_comes_back_in_the_next(make: Any, clock: Any) -> None:
    project = make()
    session = Session(project, "ann")
    task = taken(session)
    draft = Judgement((2, None, "F"), note="; DROP TABLE events; --\0\ud800")
    assert session.save(task, draft)
    clock.now += 31  # the terminal is gone without a word
    again = taken(Session(project, "ann"))
    assert (again.item_id, again.completions, again.draft) == (task.item_id, task.completions, draft)
    assert not session.save(task, RANKS)  # it belongs to the other terminal now
    assert taken(session).item_id != task.item_id


def test_two_live_terminals_of_a_labeler_never_hold_the_same_item(make: Any, clock: Any) -> None:
    project = make(num_items=4)
    one, two = Session(project, "ann"), Session(project, "ann")
    first, second = taken(one), taken(two)
    for _ in range(5):
        clock.now += 20
        assert one.heartbeat(first)
        assert two.heartbeat(second)
        assert taken(Session(project, "bo")).item_id not in (first.item_id, second.item_id)
    assert first.item_id != second.item_id
    assert taken(one).item_id == first.item_id


def test_a_closed_terminal_is_taken_over_at_once(make: Any) -> None:
    project = make()
    with Session(project, "ann") as session:
        task = taken(session)
        session.save(task, Judgement((1, None, None)))
    with Session(project, "ann") as session:
        assert taken(session).item_id == task.item_id


def test_an_undone_submission_comes_back_as_it_was_and_counts_no_more(make: Any) -> None:
    project = make()
    with Session(project, "ann") as session:
        first, second = handed_in(session), handed_in(session, Judgement((3, 1, 1)))
        back = session.undo()
        assert back is not None
        assert (back.item_id, back.draft) == (second.item_id, Judgement((3, 1, 1)))
        assert [label.item_id for label in read_labels(project)] == [first.item_id]
        earlier = session.undo()
        assert earlier is not None
        assert earlier.item_id == first.item_id
        assert session.undo() is None
        session.submit(earlier, Judgement((1, 1, 1)), submission="again")
    assert kinds(project, "submitted", "undone") == [*["submitted"] * 2, *["undone"] * 2, "submitted"]
    [label] = read_labels(project)
    assert label.ranks == (1, 1, 1)


def test_undo_in_a_new_terminal_takes_back_the_labelers_last_submission(make: Any) -> None:
    project = make(overlap=2)
    with Session(project, "ann") as session:
        task = handed_in(session)
    with Session(project, "bo") as session:
        assert session.undo() is None
    with Session(project, "ann") as session:
        back = session.undo()
    assert back is not None
    assert back.item_id == task.item_id


def test_a_skipped_item_goes_to_others_and_not_back_to_the_labeler(make: Any) -> None:
    project = make(num_items=1)
    with Session(project, "ann") as ann, Session(project, "bo") as bo:
        task = taken(ann)
        with pytest.raises(UserError, match="no reason"):
            ann.skip(task, "  ")
        ann.skip(task, "not my subject")
        assert reason(ann) == "finished"
        assert taken(bo).item_id == task.item_id
        assert ann.undo() is None  # bo has it now
        bo.skip(task, "nor mine")
        back = ann.undo()
        assert back is not None
        assert back.item_id == task.item_id


def test_a_flag_changes_nothing_else(make: Any) -> None:
    project = make()
    with Session(project, "ann") as session:
        task = taken(session)
        before = state(project)
        session.flag(task, "a phone number")
        assert state(project) == before
    assert kinds(project, "flagged") == ["flagged"]


# Leases and assignment


def test_a_lease_that_runs_out_lets_others_in_and_a_late_submission_counts(make: Any, clock: Any) -> None:
    project = make(num_items=1, lease_seconds=100)
    ann, bo = Session(project, "ann"), Session(project, "bo")
    task = taken(ann)
    assert reason(bo) == "held_by_others"
    clock.now += 101
    assert taken(bo).item_id == task.item_id
    bo.submit(task, RANKS, submission="bo")
    receipt = ann.submit(task, RANKS, submission="ann")
    assert receipt.late
    assert [(label.labeler, label.late) for label in read_labels(project)] == [("ann", True), ("bo", False)]
    assert held(project) == [2]


def test_entering_something_prolongs_the_lease(make: Any, clock: Any) -> None:
    project = make(num_items=1, lease_seconds=100)
    ann = Session(project, "ann")
    task = taken(ann)
    for _ in range(3):
        clock.now += 80
        assert ann.save(task, Judgement((1, None, None)))
    assert reason(Session(project, "bo")) == "held_by_others"
    assert kinds(project, "saved") == ["saved"]  # the same draft is one event


def test_an_expired_item_comes_back_to_its_labeler_with_the_draft(make: Any, clock: Any) -> None:
    project = make(num_items=1, lease_seconds=100)
    ann = Session(project, "ann")
    task = taken(ann)
    ann.save(task, Judgement((1, None, 2)))
    clock.now += 101
    again = taken(ann)
    assert (again.item_id, again.draft) == (task.item_id, Judgement((1, None, 2)))
    assert held(project) == [1]


def test_every_item_gets_its_overlap_and_no_labeler_the_same_item_twice(make: Any) -> None:
    project = make(num_items=5, overlap=2)
    seen: dict[str, list[int]] = {}
    for name in ("ann", "bo", "cy"):
        with Session(project, name) as session:
            while isinstance(task := session.next(), Task):
                session.submit(task, RANKS, submission=new_submission())
                seen.setdefault(name, []).append(task.item_id)
    assert held(project) == [2] * 5
    assert all(len(set(items)) == len(items) for items in seen.values())
    assert set(seen) == {"ann", "bo"}


def test_the_least_labelled_items_come_first(make: Any) -> None:
    project = make(num_items=3, overlap=3)
    first = handed_in(Session(project, "ann"))
    second = handed_in(Session(project, "bo"))
    third = handed_in(Session(project, "cy"))
    assert len({first.item_id, second.item_id, third.item_id}) == 3


def test_working_time_counts_pauses_up_to_the_limit() -> None:
    now = [0.0]
    timer = WorkingTime(60.0, clock=lambda: now[0])
    for moment in (10.0, 30.0, 1000.0):
        now[0] = moment
        spent = timer.touch()
    assert spent == 10 + 20 + 60

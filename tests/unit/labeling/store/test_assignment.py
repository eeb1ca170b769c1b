"""Gold items, the qualification round and items that a reward model is unsure of."""

import math
from typing import Any

import pytest

from labeling.analysis.status import status
from labeling.exchange.uncertainty import uncertainty
from labeling.sessions.session import Session, new_submission
from labeling.store.assignment import NoTask
from labeling.store.items import Item
from labeling.store.judgements import Judgement, Task
from labeling.store.project import NewItem, Project
from rlhf.data.records import Rank


def known(kind: str, number: int, answer: tuple[Rank, ...] = (1, 2, 3)) -> NewItem:
    item = Item(prompt=f"{kind} {number}", completions=("a", "b", "c"))
    return NewItem(item, kind=kind, answer=answer)  # type: ignore[arg-type]


def work_through(project: Project, name: str, *, right: bool = True) -> list[str]:
    """Rank alphabetically, or the other way round; returns the prompts in the order in which they came."""
    prompts = []
    with Session(project, name) as session:
        while isinstance(task := session.next(), Task):
            assert isinstance(task.prompt, str)
            prompts.append(task.prompt)
            place = sorted(task.completions, reverse=not right).index
            ranks = tuple(place(completion) + 1 for completion in task.completions)
            session.submit(task, Judgement(ranks), submission=new_submission())
    return prompts


def test_gold_items_are_mixed_in_for_everybody_and_take_no_labels_from_others(make: Any) -> None:
    project = make(num_items=40, overlap=2, gold_share=0.25)
    project.add(known("gold", n) for n in range(6))
    for name in ("ann", "bo"):
        prompts = work_through(project, name)
        gold = [place for place, prompt in enumerate(prompts) if prompt.startswith("gold")]
        assert len(set(prompts)) == len(prompts) == 46
        assert len(gold) == 6
        assert gold != list(range(40, 46))
    found = {each.labeler: each for each in status(project, threshold=0.7, num_resamples=10).labelers}
    assert found["ann"].gold_accuracy is not None
    assert found["ann"].gold_accuracy.value == 1.0


def test_gold_accuracy_is_the_share_of_pairs_judged_as_the_answer_does(make: Any) -> None:
    project = make(num_items=30, gold_share=0.5)
    project.add([known("gold", 0, (1, 2, 2))])  # ann says 1, 2, 3: two pairs of three
    work_through(project, "ann")
    [ann] = status(project, threshold=0.7, num_resamples=10).labelers
    assert ann.gold_accuracy is not None
    assert ann.gold_accuracy.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(("right", "num"), [(True, 7), (False, 4)])
def test_only_who_passes_the_qualification_round_gets_items(make: Any, right: bool, num: int) -> None:
    project = make(num_items=3, qualification_accuracy=0.9)
    project.add(known("qualification", n) for n in range(4))
    prompts = work_through(project, "ann", right=right)
    assert [prompt.split()[0] for prompt in prompts[:4]] == ["qualification"] * 4
    assert len(prompts) == num
    with Session(project, "ann") as session:
        task = session.next()
        assert isinstance(task, NoTask)
        assert task.reason == ("finished" if right else "not_qualified")


def test_the_qualification_round_is_not_passed_by_skipping_or_in_another_terminal(make: Any) -> None:
    project = make(qualification_accuracy=0.6)
    project.add(known("qualification", n) for n in range(2))
    one, two, three = (Session(project, "ann") for _ in range(3))
    first, second = one.next(), two.next()
    assert isinstance(first, Task)
    assert isinstance(second, Task)
    waiting = three.next()
    assert isinstance(waiting, NoTask)
    assert waiting.reason == "qualifying_elsewhere"
    one.skip(first, "hard")
    ranks = tuple("abc".index(completion) + 1 for completion in second.completions)
    two.submit(second, Judgement(ranks), submission="1")
    failed = three.next()
    assert isinstance(failed, NoTask)
    assert failed.reason == "not_qualified"


def test_the_items_that_a_reward_model_is_least_sure_of_come_first(make: Any) -> None:
    project = make(num_items=0, order="uncertainty", overlap=2)
    items = [Item(prompt=str(n), completions=("a", "b")) for n in range(4)]
    project.add(NewItem(item, priority=[0.1, 0.9, 0.3, 0.7][n]) for n, item in enumerate(items))
    assert work_through(project, "ann") == ["1", "3", "2", "0"]
    assert work_through(project, "bo") == ["1", "3", "2", "0"]


def test_uncertainty_is_the_entropy_of_the_reward_models_choices() -> None:
    assert uncertainty([2.0, 2.0]) == pytest.approx(1.0)
    assert uncertainty([0.0, 1e9]) == 0.0
    p = 1 / (1 + math.exp(-1.5))
    bits = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert uncertainty([0.5, 2.0]) == uncertainty([2.0, 0.5]) == pytest.approx(bits)
    assert uncertainty([0.0, 1.5, 1.5]) == pytest.approx((2 * bits + 1) / 3)

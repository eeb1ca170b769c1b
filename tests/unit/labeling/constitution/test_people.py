"""The constitution compared with people's rankings."""

from labeling.constitution.people import PeopleComparison, compare_with_people
from labeling.constitution.preferences import Judged
from labeling.store.items import Item
from rlhf.data.records import Ranking

ITEMS = [Item(prompt=f"p{n}", completions=("a", "b")) for n in range(8)]
JUDGED = [Judged(item, (), ((0, 1, 0.8),)) for item in ITEMS]


def compared(judged: list[Judged], copies: int) -> PeopleComparison:
    """With people of whom `copies` ranked each item, alike, and of four items against the constitution."""
    people = [
        Ranking(prompt=item.prompt, completions=item.completions, ranks=(1, 2) if number % 2 else (2, 1))
        for number, item in enumerate(ITEMS)
        for _ in range(copies)
    ]
    return compare_with_people(judged, people, "constitution")


def test_more_rankings_of_one_item_make_no_interval_narrower() -> None:
    one, many = compared(JUDGED, 1), compared(JUDGED, 20)
    assert (one.pairs, many.pairs) == (8, 160)
    assert (one.agreement, one.kappa, one.same_order) == (many.agreement, many.kappa, many.same_order)


def test_every_ranking_of_an_item_counts_however_few_items_there_are() -> None:
    found = compared(JUDGED[:2], 5)
    assert (found.items, found.pairs) == (2, 10)
    assert found.agreement is not None
    assert found.agreement.value == 0.5

"""Labels made by hand."""

from collections.abc import Sequence

from labeling.store.judgements import Judgement
from labeling.store.labels import Label
from rlhf.data.records import Rank


def label(item_id: int, labeler: str, ranks: Sequence[Rank], *, seconds: float | None = 1.0) -> Label:
    return Label(
        event_id=1,
        item_id=item_id,
        labeler_id=sum(labeler.encode()),
        labeler=labeler,
        judgement=Judgement(tuple(ranks)),
        at=0.0,
        seconds=seconds,
        late=False,
    )


def pair(item_id: int, labeler: str, value: int) -> Label:
    """A label of two completions: 0 first better, 1 tie, 2 second better."""
    return label(item_id, labeler, ((1, 2), (1, 1), (2, 1))[value])

"""Which of the two answers of a row is the better one, by all that the row says of them."""

from collections.abc import Sequence

from rlhf.data.columns import Columns, UnusableRowError
from rlhf.data.judgements import CONTRADICTED, Side, check_pair
from rlhf.data.records import Comparison, Rank
from rlhf.errors import UserError

RANKS: dict[Side, tuple[Rank, Rank]] = {"first": (1, 2), "second": (2, 1), "tie": (1, 1)}
_SIDES: dict[str, Side] = {"first": "first", "second": "second", "tie": "tie"}


def preference(columns: Columns) -> Side | float:
    """Which answer of a pair is better, or the probability that the first is."""
    scored = check_pair(columns.others, columns.name("chosen"), columns.name("rejected"))
    probability, better = columns.probability(), columns.better()
    if probability is not None and better is not None:
        raise UserError("both `probability` and `better`", fix="Give one of the two.")
    if better is None and probability is None and scored == "tie":
        return "tie"
    found = _SIDES.get(better or "", "first") if probability is None else likelier(probability)
    if {found, scored} == {"first", "second"}:
        raise UnusableRowError(CONTRADICTED)
    return found if probability is None else probability


def check_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Check that no two comparisons of the same completions say the opposite.

    Raises:
        UserError: two do.
    """
    better: dict[tuple[int, int], bool] = {}
    for first, second, probability in comparisons:
        if probability == 0.5:
            continue
        pair = (min(first, second), max(first, second))
        is_first = (probability > 0.5) == (first < second)
        if better.setdefault(pair, is_first) != is_first:
            fix = "A comparison is [i, j, probability that i is better than j]: state one for each two "
            fix += "completions, with the mean probability."
            raise UserError(f"two comparisons of completions {pair[0]} and {pair[1]} contradict", fix=fix)


def likelier(probability: float) -> Side:
    if probability == 0.5:
        return "tie"
    return "first" if probability > 0.5 else "second"

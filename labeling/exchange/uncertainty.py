"""How unsure a reward model is of an item's order, from a file that `python -m reward score` wrote."""

import math
import shlex
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from labeling.store.items import Item
from rlhf.data.columns import Columns
from rlhf.data.readers import file_rows, parse_json
from rlhf.errors import UserError


def score_command(items: Path | str = "ITEMS") -> str:
    """The command that scores a file of items, with names to fill in."""
    items = shlex.quote(str(items))
    return f"python -m reward score --model runs/RUN/reward/model --input {items} --output SCORES"


_FORM = f"Write it with: {score_command()}"


def read_uncertainty(path: Path) -> dict[str, float]:
    """Item key → uncertainty, of every row of a score file.

    Raises:
        UserError: no such file, or a row that is no item with one finite raw score for each completion.
    """
    if not path.is_file():
        raise UserError("there is no such file", where=str(path), fix=_FORM)
    found = {}
    for where, content in file_rows(path):
        try:
            key, scores = _scored(parse_json(content) if isinstance(content, bytes) else content)
        except UserError as error:
            raise error.at(f"{path}, {where}") from None
        found[key] = uncertainty(scores)
    return found


def uncertainty(raw_scores: Sequence[float]) -> float:
    """Mean entropy, in bits, of "which of the two is better" over all pairs of completions.

    The probability is the reward model's own, sigmoid(difference of raw scores) (Bradley and Terry 1952).
    """
    entropies = [_entropy_bits(abs(a - b)) for a, b in combinations(raw_scores, 2)]
    return sum(entropies) / len(entropies)


def _entropy_bits(margin: float) -> float:
    less = math.exp(-margin)  # p = 1 / (1 + less) for the better one
    return (math.log1p(less) + margin * less / (1 + less)) / math.log(2)


def _scored(row: Any) -> tuple[str, list[float]]:
    if not isinstance(row, dict) or not {"prompt", "completions", "raw_score"} <= row.keys():
        raise UserError("this is not a prompt with completions and raw scores", fix=_FORM)
    fields, scores = Columns(row), row["raw_score"]
    item = Item(prompt=fields.prompt(), completions=fields.completions())
    numbers = isinstance(scores, list) and all(
        isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        for score in scores
    )
    if not numbers or len(scores) != len(item.completions):
        raise UserError("`raw_score` is not one finite number for each completion", fix=_FORM)
    return item.key, [float(score) for score in scores]

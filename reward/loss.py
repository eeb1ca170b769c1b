"""The ranking loss: every ordered pair of a group of completions, each completion scored once.

A group is the completions of one prompt. Its loss is the mean over its own pairs of the cross-entropy of
the Bradley-Terry model, whose probability that completion i is better than j is sigmoid(score_i - score_j);
the loss of a batch is the mean over its groups (InstructGPT, 2203.02155, equation 1, with the number of
pairs that a group really has in place of "K choose 2"). Pairs of one prompt are correlated, so a prompt
counts once however many completions it has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

# Shapes: N completions of all groups of a batch, one after the other; P pairs of all groups.


class Pair(NamedTuple):
    """Two completions of a group and the probability that the first is better; a tie is known to be one."""

    first: int
    second: int
    target: float
    is_tie: bool = False


@dataclass(frozen=True)
class Pairs:
    """All pairs of a batch, as indices into its flat list of completions."""

    first_P: Tensor
    second_P: Tensor
    target_P: Tensor
    """Probability that the first is better, in [0, 1]."""
    tie_P: Tensor
    weight_P: Tensor
    """1 / (pairs of the pair's group x groups of the batch)."""

    def margins(self, scores_N: Tensor) -> Tensor:
        """Score of the first less score of the second, (P,)."""
        return scores_N.index_select(0, self.first_P) - scores_N.index_select(0, self.second_P)


def ranked_pairs(ranks: Sequence[float], *, with_ties: bool) -> list[Pair]:
    """Every pair that the ranks of one group decide, the better one first.

    1 is best and infinity means failed: below every number, and no pair with another failed one. Equal
    ranks give a tie pair if `with_ties`, otherwise none.
    """
    pairs: list[Pair] = []
    for i in range(len(ranks)):
        for j in range(i + 1, len(ranks)):
            if ranks[i] != ranks[j]:
                pairs.append(Pair(i, j, 1.0) if ranks[i] < ranks[j] else Pair(j, i, 1.0))
            elif with_ties and not math.isinf(ranks[i]):
                pairs.append(Pair(i, j, 0.5, is_tie=True))
    return pairs


def collate(
    groups: Sequence[Sequence[Pair]],
    sizes: Sequence[int],
    *,
    num_groups: int | None = None,
    device: torch.device | str = "cpu",
) -> Pairs:
    """The pairs of several groups with `sizes[g]` completions each, laid end to end.

    `num_groups` is the number of groups of the whole optimizer step when these are only some of them: the
    losses of the parts then add up to the loss of the step.
    """
    total = len(groups) if num_groups is None else num_groups
    firsts: list[int] = []
    seconds: list[int] = []
    targets: list[float] = []
    ties: list[bool] = []
    weights: list[float] = []
    start = 0
    for pairs, size in zip(groups, sizes, strict=True):
        for first, second, target, is_tie in pairs:
            firsts.append(start + first)
            seconds.append(start + second)
            targets.append(target)
            ties.append(is_tie)
            weights.append(1 / (len(pairs) * total))
        start += size
    return Pairs(
        first_P=torch.tensor(firsts, dtype=torch.long, device=device),
        second_P=torch.tensor(seconds, dtype=torch.long, device=device),
        target_P=torch.tensor(targets, device=device),
        tie_P=torch.tensor(ties, dtype=torch.bool, device=device),
        weight_P=torch.tensor(weights, device=device),
    )


def ranking_loss(scores_N: Tensor, pairs: Pairs, *, tie_margin: float = 0.0) -> Tensor:
    """Mean over groups of the mean cross-entropy of a group's pairs, in nats; a scalar.

    A pair with target probability p costs -p log sigmoid(d) - (1-p) log sigmoid(-d), where d is the margin:
    -log sigmoid(d) when p = 1. A tie is p = 1/2 outside an indifference zone: its d is first moved towards
    0 by `tie_margin`, so that differences too small to be told apart cost nothing extra (the threshold of
    Rao and Kupper 1967; the pairs that are told apart stay Bradley-Terry, and sigmoid(d) their probability).
    """
    margins_P = pairs.margins(scores_N)
    beyond_P = margins_P - margins_P.clamp(-tie_margin, tie_margin)
    margins_P = torch.where(pairs.tie_P, beyond_P, margins_P)
    target_P = pairs.target_P.to(margins_P.dtype)
    losses_P = target_P * softplus(-margins_P) + (1 - target_P) * softplus(margins_P)
    return (losses_P * pairs.weight_P.to(margins_P.dtype)).sum()

"""One ranking out of several labelers' rankings of an item, and what it cannot decide.

A completion has failed if more than half of the labelers say so. Of the others, i beats j if more labelers
put i above j than j above i. If that relation goes round in a circle (Condorcet's paradox), nobody's ranking
can stand for all: the completions of the circle share a rank, and the circle is reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.stats import kendalltau

from labeling.store.judgements import competition_ranks, implied_pairs
from rlhf.data.records import FAILED, Rank

# Shapes: K completions.

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Consensus:
    """What labelers say together of one item."""

    ranks: tuple[Rank, ...]
    ties: tuple[tuple[int, ...], ...]
    """Completions (from 0) that share a rank because votes are even."""
    cycles: tuple[tuple[int, ...], ...]
    """Completions that share a rank because they beat each other in a circle."""


def consensus(rankings: Sequence[Sequence[Rank]]) -> Consensus:
    """The consensus of one label or more of the same item.

    Completions fall into groups, of which each beats every later one: the strongly connected components of
    "not beaten by". In a group without a circle (a ties b, b ties c, a beats c) the balance of all votes
    inside the group decides, and equal balances tie.
    """
    return _consensus(tuple(tuple(ranks) for ranks in rankings))


@lru_cache(maxsize=100_000)
def _consensus(rankings: tuple[tuple[Rank, ...], ...]) -> Consensus:
    num = len(rankings[0])
    failed = [2 * sum(ranks[k] == FAILED for ranks in rankings) > len(rankings) for k in range(num)]
    alive = [k for k in range(num) if not failed[k]]
    balance_KK = _balance(rankings)[np.ix_(alive, alive)]
    ranks: list[Rank] = [FAILED] * num
    ties: list[tuple[int, ...]] = []
    cycles: list[tuple[int, ...]] = []
    place = 1
    for group in _groups(balance_KK):
        inside_KK = balance_KK[np.ix_(group, group)]
        is_cycle = len(group) > 1 and _components(inside_KK > 0)[0] < len(group)
        scores = np.zeros(len(group)) if is_cycle else inside_KK.sum(axis=1)
        for score in sorted(set(scores.tolist()), reverse=True):
            members = tuple(alive[k] for k, own in zip(group, scores, strict=True) if own == score)
            for member in members:
                ranks[member] = place
            place += len(members)
            if len(members) > 1:
                (cycles if is_cycle else ties).append(members)
    return Consensus(competition_ranks(ranks), tuple(ties), tuple(cycles))


def kendall_tau(ranks: Sequence[Rank], other: Sequence[Rank]) -> float | None:
    """Kendall's tau-b of two rankings, a failed completion being last; None if one ties everything."""
    return _kendall_tau(tuple(ranks), tuple(other))


@lru_cache(maxsize=100_000)
def _kendall_tau(ranks: tuple[Rank, ...], other: tuple[Rank, ...]) -> float | None:
    worst = len(ranks) + 1
    first, second = ([worst if rank == FAILED else rank for rank in each] for each in (ranks, other))
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(kendalltau(first, second).statistic)


def _balance(rankings: Sequence[Sequence[Rank]]) -> Floats:
    """[i, j]: labelers who put i above j, less those who put j above i."""
    num = len(rankings[0])
    balance_KK = np.zeros((num, num))
    for ranks in rankings:
        for first, second, better in implied_pairs(ranks):
            balance_KK[first, second] += better
            balance_KK[second, first] -= better
    return balance_KK


def _groups(balance_KK: Floats) -> list[list[int]]:
    """The components of "not beaten by", best first: any two of them have a winner, so they are in order."""
    num_groups, group_K = _components(balance_KK >= 0)
    members = [[int(k) for k in np.flatnonzero(group_K == group)] for group in range(num_groups)]
    num_beaten = [int((balance_KK[group[0]] > 0).sum()) for group in members]
    outside = [
        beaten - int((balance_KK[np.ix_([group[0]], group)] > 0).sum())
        for beaten, group in zip(num_beaten, members, strict=True)
    ]
    return [members[k] for k in sorted(range(num_groups), key=lambda k: -outside[k])]


def _components(edges_KK: NDArray[np.bool_]) -> tuple[int, NDArray[np.int32]]:
    if not len(edges_KK):
        return 0, np.zeros(0, dtype=np.int32)
    without_loops = edges_KK & ~np.eye(len(edges_KK), dtype=bool)
    number, labels = connected_components(without_loops, directed=True, connection="strong")
    return int(number), labels

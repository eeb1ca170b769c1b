"""Rankings become groups: one prompt, its completions as token ids, and the pairs that its labels decide."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward.config import RewardSettings
from reward.loss import Pair, ranked_pairs
from rlhf.data.counts import RecordCounts
from rlhf.data.prompt_form import Form, form_of_run, noted_form, warn_of_other_form
from rlhf.data.records import FAILED, Message, Ranking, Turns, bare_text, prompt_key
from rlhf.data.sources import read_rankings, split_by_prompt
from rlhf.errors import UserError
from rlhf.model.answers import AnswerChangedError
from rlhf.model.backbone import Backbone
from rlhf.model.batching import token_batches
from rlhf.model.chat import encode_completion, length_fix, prompt_text
from rlhf.model.fitting import fit_prompt
from rlhf.model.remarks import note_remarks
from rlhf.model.rendering import of_record

STEP = "reward.rankings"
"""The name under which the record counts list what this stage drops."""
NO_PAIR = "no comparison in group"
EQUAL_ANSWERS = "answers equal for the model"
EQUAL_PAIRS = "pairs of equal answers left out"
OPPOSITE_PAIRS = "pairs of equal answers with opposite preferences left out"


@dataclass(frozen=True)
class Group:
    """One prompt and K completions, each encoded once; all of them follow the same prompt ids."""

    key: str
    """Equal for equal prompts and only for them."""
    prompt: str
    completions: tuple[str, ...]
    labels: tuple[str, ...]
    """What the annotator said of each completion, as people read it."""
    prompt_ids: list[int]
    response_ids: list[list[int]]
    pairs: list[Pair]
    encoded: str | Turns | None = None
    """The prompt that `prompt_ids` encode, to shorten it by turns; None: only the ids are known."""

    def __len__(self) -> int:
        return len(self.response_ids)

    @property
    def sequences(self) -> list[list[int]]:
        return [self.prompt_ids + ids for ids in self.response_ids]

    @property
    def max_tokens(self) -> int:
        """Length of its longest sequence."""
        return len(self.prompt_ids) + max(len(ids) for ids in self.response_ids)


@dataclass(frozen=True)
class Rankings:
    """Training and held-out groups, no prompt on both sides, and what became of every record."""

    train: list[Group]
    held_out: list[Group]
    counts: RecordCounts

    @property
    def form(self) -> Form:
        """Whether any of the prompts is a conversation, for the record counts."""
        prompts = [group.encoded for group in (*self.train, *self.held_out)]
        return "text" if all(prompt is None or isinstance(prompt, str) for prompt in prompts) else "messages"

    def pairs(self) -> dict[str, int]:
        """Pairs of both sides, and those that are undecided: ties, and probabilities of exactly 1/2."""
        sides = {"train": self.train, "heldout": self.held_out}
        pairs = {name: [pair for group in side for pair in group.pairs] for name, side in sides.items()}
        return {name: len(found) for name, found in pairs.items()} | {
            f"{name}_undecided": sum(pair.target == 0.5 for pair in found) for name, found in pairs.items()
        }

    def warn(self) -> None:
        """Say on stderr what these pairs cannot teach or measure."""
        pairs = self.pairs()
        if pairs["train"] == pairs["train_undecided"]:
            what = (
                f"none of the {pairs['train']:,} training pairs says which completion is better (ties, or a "
            )
            what += "probability of 1/2): the reward model will learn to score all alike"
            print(f"warning: reward: {what}", file=sys.stderr)
        if pairs["heldout"] == pairs["heldout_undecided"]:
            what = "there is no held-out pair"
            if pairs["heldout"]:
                what = f"none of the {pairs['heldout']:,} held-out pairs says which completion is better"
            what += ", so no accuracy can be measured: give more prompts, or raise reward.held_out_fraction"
            print(f"warning: reward: {what}", file=sys.stderr)


def load_rankings(backbone: Backbone, settings: RewardSettings, *, seed: int, run_folder: Path) -> Rankings:
    """Read the recipe's rankings, encode them and find their pairs.

    Raises:
        UserError: a source cannot be read, a group is too long (under `length.over_length=error`), or none is
            left.
    """
    records, counts = read_rankings(
        settings.rankings, seed=seed, run_folder=run_folder, form=form_of_run(run_folder)
    )
    warn_of_other_form("reward", records, run_folder)
    sides = split_by_prompt(
        records, fraction=settings.held_out_fraction, seed=seed, form=noted_form(run_folder)
    )
    train, held_out = ([g for r in side if (g := _group(backbone, r, settings, counts))] for side in sides)
    if not train:
        raise _nothing_left(settings, counts, num_records=len(records), num_held_out=len(held_out))
    data = Rankings(train, held_out, counts)
    data.warn()
    return data


def micro_batches(groups: Sequence[Group], max_tokens: int) -> Iterator[list[Group]]:
    """Groups of like length together, at most `max_tokens` padded tokens at a time (at least one group)."""
    lengths = [group.max_tokens for group in groups]
    for places in token_batches(lengths, max_tokens, num_rows=[len(group) for group in groups]):
        yield [groups[place] for place in places]


def context_tokens(backbone: Backbone, settings: RewardSettings) -> int:
    """The longest sequence that this reward model scores."""
    return min(settings.length.max_tokens or backbone.max_length, backbone.max_length)


def _group(
    backbone: Backbone, record: Ranking, settings: RewardSettings, counts: RecordCounts
) -> Group | None:
    pairs = _pairs(record, settings)
    if not pairs:
        counts.add(STEP, NO_PAIR)
        return None
    tokenizer = backbone.tokenizer
    where = record.where or f"reward.rankings, prompt {prompt_text(record.prompt)[:60]!r}"
    try:
        response_ids = [
            encode_completion(tokenizer, record.prompt, completion, eos=backbone.eos_ids)
            for completion in record.completions
        ]
    except AnswerChangedError as changed:
        counts.add(STEP, changed.what)
        return None
    except UserError as error:
        raise of_record(error, where) from None
    # A chat template may trim what tells two answers apart. Such a pair costs ln 2 whatever the model does.
    texts = [bare_text(completion) for completion in record.completions]
    told_apart = [
        pair
        for pair in pairs
        if response_ids[pair.first] != response_ids[pair.second] and texts[pair.first] != texts[pair.second]
    ]
    agreeing = _without_opposites(told_apart, texts, response_ids)
    if not agreeing:
        counts.add(STEP, OPPOSITE_PAIRS if told_apart else EQUAL_ANSWERS)
        return None
    answers = [Message("assistant", completion) for completion in record.completions]
    note_remarks(counts, STEP, tokenizer, record.prompt, answers)
    fitted = fit_prompt(
        tokenizer,
        record.prompt,
        max(len(ids) for ids in response_ids),
        context_tokens(backbone, settings),
        settings.length.over_length,
        where=where,
        fix=length_fix("reward", settings.length, context=backbone.max_length),
    )
    if fitted.outcome != "kept":
        counts.add(STEP, "truncated" if fitted.outcome == "truncated" else "longer than the context")
    if fitted.ids is None:
        return None
    counts.note(STEP, EQUAL_PAIRS, len(pairs) - len(told_apart))
    counts.note(STEP, OPPOSITE_PAIRS, len(told_apart) - len(agreeing))
    return Group(
        key=prompt_key(record.prompt),
        prompt=prompt_text(fitted.prompt),
        completions=record.completions,
        labels=_labels(record),
        prompt_ids=fitted.ids,
        response_ids=response_ids,
        pairs=agreeing,
        encoded=fitted.prompt,
    )


def _without_opposites(
    pairs: Sequence[Pair], texts: Sequence[str], response_ids: Sequence[list[int]]
) -> list[Pair]:
    """The pairs but those that say, of the same two answers, both that the one and the other is better.

    Two completions that are equal may have been ranked apart, one above and one below a third.
    """
    same = [
        min(j for j in range(len(texts)) if texts[j] == texts[i] or response_ids[j] == response_ids[i])
        for i in range(len(texts))
    ]
    better: dict[tuple[int, int], set[bool]] = {}
    for pair in pairs:
        first = same[pair.first]
        second = same[pair.second]
        if pair.target != 0.5:
            of_two = better.setdefault((min(first, second), max(first, second)), set())
            of_two.add((pair.target > 0.5) == (first < second))
    opposite = {of_two for of_two, found in better.items() if len(found) == 2}
    places = [sorted((same[pair.first], same[pair.second])) for pair in pairs]
    return [pair for pair, (low, high) in zip(pairs, places, strict=True) if (low, high) not in opposite]


def _pairs(record: Ranking, settings: RewardSettings) -> list[Pair]:
    if record.comparisons is not None:
        return [Pair(first, second, target) for first, second, target in record.comparisons]
    assert record.ranks is not None
    ranks = [math.inf if rank == FAILED else float(rank) for rank in record.ranks]
    return ranked_pairs(ranks, with_ties=settings.tie_margin is not None)


def _nothing_left(
    settings: RewardSettings, counts: RecordCounts, *, num_records: int, num_held_out: int
) -> UserError:
    """Why no group is left to train on."""
    where = ", ".join(source.path for source in settings.rankings)
    dropped = ", ".join(f"{reason}: {n:,}" for reason, n in counts.dropped(STEP).items())
    if counts.dropped(STEP).get(NO_PAIR, 0) < num_records:
        return UserError(
            f"no group of completions is left to train on ({num_held_out} held out)"
            + (f"; left out: {dropped}" if dropped else ""),
            where=where,
            fix="Give more prompts whose completions differ in rank, allow longer ones (reward.length), or "
            "lower reward.held_out_fraction.",
        )
    fix = "Rank the completions of at least some prompts apart."
    if settings.tie_margin is None:
        fix = f"{fix[:-1]}, or set reward.tie_margin (0, say) to learn from equal ranks too."
    return UserError(
        f"all {num_records:,} groups are ties: no completion is ranked above another", where=where, fix=fix
    )


def _labels(record: Ranking) -> tuple[str, ...]:
    """A completion's rank, or the mean probability that it is the better one of a comparison."""
    if record.ranks is not None:
        return tuple(f"rank {rank}" for rank in record.ranks)
    assert record.comparisons is not None
    wins: list[list[float]] = [[] for _ in record.completions]
    for first, second, target in record.comparisons:
        wins[first].append(target)
        wins[second].append(1 - target)
    return tuple(f"wins {sum(won) / len(won):.2f}" if won else "" for won in wins)

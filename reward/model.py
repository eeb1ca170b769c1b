"""The reward model on a backbone: an adapter, a scalar head, and the normalization of its scores.

What the reward stage publishes is the *raw* score, a plain PEFT adapter with a head that has no bias.
`reward.json` next to it says which base the adapter belongs to, and the mean and standard deviation of the
raw scores of the SFT policy's own samples: a normalized score is one with mean 0 and variance 1 on them.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.batching import TokenBatch, token_batches
from rlhf.model.stored_adapter import load_score_head
from rlhf.model.weights import gathered_weights, run_pass
from rlhf.parallel.world import world
from rlhf.runs.files import sha256_file
from rlhf.runs.manifest import MODEL, JsonFile, Manifest
from rlhf.sampling.engine import sample
from rlhf.sampling.judged import judged_responses
from rlhf.settings.groups import Precision, SamplingSettings

# Shapes: B sequences, L tokens of a padded sequence, H hidden size, S samples.

ROLE = "reward"
CARD_FILE = "reward.json"
NORMALIZATION = 2**41
"""Stands where an iteration would in a noise key: no rollout of a later stage shares this noise."""
_WEIGHTS = (".safetensors", ".bin")
_SMALLEST_STD = 1e-6
_NOISE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 5e-3, "int8": 5e-3, "nf4": 5e-3}
"""Share of a score that is rounding: ten times what two ways of computing the same score differ by."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


class RewardCard(JsonFile):
    """What `reward.json` says of a published reward model."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    schema_version: Literal[1] = 1
    base_sha256: str
    """Identity of the base model: see `base_identity`."""
    precision: Precision
    """Precision of the base when mean and standard deviation were measured."""
    mean: float = Field(validation_alias="offset", serialization_alias="offset")
    """Mean raw score of the SFT policy's own samples; `offset` in the file."""
    std: float = Field(validation_alias="spread", serialization_alias="spread")
    """Standard deviation of the same scores, 1 if they are equal but for rounding; `spread` in the file."""
    num_reference_samples: int
    eos_ids: list[int]
    """Tokens that end a completion; a completion is scored with its EOS."""
    max_tokens: int
    """Longest sequence (prompt and completion) that it was trained for."""

    @staticmethod
    def of(folder: Path) -> "RewardCard":
        """The card of a published model.

        Raises:
            UserError: there is none, or it is damaged or of another version.
        """
        path = folder / CARD_FILE
        if not path.is_file():
            raise UserError(
                f"no reward model here ({CARD_FILE} is missing)",
                where=str(folder),
                fix="Give the folder that the reward stage published, runs/<name>/reward/model.",
            )
        return RewardCard.read(path)


@dataclass(frozen=True)
class Normalization:
    """Raw scores of the SFT policy's own samples."""

    scores_S: Tensor
    """In float64, all of them finite."""
    num_ended: int
    """Samples that ended by themselves."""
    precision: Precision
    """Of the base that they were measured on."""

    @property
    def mean(self) -> float:
        return float(self.scores_S.mean())

    @property
    def std(self) -> float:
        """Standard deviation, or 1 if all scores are equal but for rounding."""
        largest = float(self.scores_S.abs().max())
        return usable_std(float(self.scores_S.std(correction=0)), largest=largest, precision=self.precision)


def usable_std(std: float, *, largest: float, precision: Precision) -> float:
    """`std`, or 1 if it is no more than rounding makes of equal scores of the size `largest`.

    Divided by rounding noise, the first real difference would be a reward of millions.
    """
    is_noise = std <= max(_NOISE[precision] * largest, _SMALLEST_STD)
    return 1.0 if is_noise else std


class RewardModel:
    """The role `reward` of a backbone, with its normalization."""

    def __init__(self, backbone: Backbone, card: RewardCard) -> None:
        self.backbone, self.card = backbone, card

    @property
    def mean(self) -> float:
        return self.card.mean

    @property
    def std(self) -> float:
        return self.card.std

    def raw(self, batch: TokenBatch) -> Tensor:
        """Raw scores (B,)."""
        return raw_scores(self.backbone, batch)

    def normalized(self, raw_B: Tensor) -> Tensor:
        """Scores in units of the SFT policy: its own samples have mean 0 and variance 1."""
        return (raw_B - self.mean) / self.std


def load_reward(backbone: Backbone, folder: Path, *, expected_base_sha256: str) -> RewardModel:
    """Add a published reward model to `backbone` as its role `reward`, frozen.

    `expected_base_sha256` is the identity of the backbone's base.

    Raises:
        UserError: the folder holds no reward model of ours, or one that was trained on another base.
    """
    card = RewardCard.of(folder)
    if card.base_sha256 != expected_base_sha256:
        raise UserError(
            f"this reward model was trained on another base ({card.base_sha256[:12]}, "
            f"not {expected_base_sha256[:12]} as here)",
            where=str(folder),
            fix="Train the reward stage again on this SFT model, or go back to the one that it belongs to.",
        )
    std = usable_std(card.std, largest=abs(card.mean), precision=card.precision)
    if std != card.std:
        if world().is_rank0:
            what = f"a standard deviation of {card.std:.1e} around {card.mean:.3g} is rounding noise"
            print(f"warning: {folder / CARD_FILE}: {what}, and scores are not divided by it", file=sys.stderr)
        card = card.model_copy(update={"std": std})
    backbone.load_adapter(ROLE, folder)
    load_score_head(backbone.add_head(ROLE, bias=False), folder)
    return RewardModel(backbone, card)


def measure_normalization(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingSettings,
    *,
    num_samples: int,
    max_tokens: int,
    seed: int,
) -> Normalization:
    """Score `num_samples` samples of the SFT policy (the role `reference`) with the role `reward`.

    Every prompt is used once before any is used again. A forward pass takes `max_tokens` padded tokens. A
    score that is not finite is left out, with a warning.

    Raises:
        UserError: no score is finite.
    """
    ours = world()
    order = np.random.default_rng([seed, NORMALIZATION]).permutation(len(prompts))
    places = ours.shard(num_samples)
    rows = [int(order[place % len(order)]) for place in places]
    with gathered_weights(backbone):
        rollouts = sample(
            backbone,
            [prompts[row] for row in rows],
            role=REFERENCE,
            settings=sampling,
            keys=[(NORMALIZATION, row, place // len(order)) for row, place in zip(rows, places, strict=True)],
            seed=seed,
        )
        responses = judged_responses(backbone, rollouts, sampling)
        sequences = [p + r for p, r in zip(rollouts.prompt_lists(), responses, strict=True)]
        scores_S = score_sequences(backbone, sequences, max_tokens=max_tokens)
        scores_S = ours.unshard_tensor(scores_S, num_samples).double()
        ended_S = ours.unshard_tensor(rollouts.ended_B, num_samples)
    finite_S = scores_S[scores_S.isfinite()]
    if not len(finite_S):
        raise UserError(
            f"none of {num_samples} samples of the SFT policy has a finite score",
            where="reward model",
            fix="Train the reward stage again with a lower reward.learning_rate (CLEAN=1).",
        )
    if ours.is_rank0 and len(finite_S) < num_samples:
        num_lost = num_samples - len(finite_S)
        what = f"{num_lost} of {num_samples} samples of the SFT policy have no finite score"
        print(f"warning: reward: {what}, and are not in its mean and std", file=sys.stderr)
    return Normalization(finite_S, int(ended_S.sum()), backbone.precision)


def raw_scores(backbone: Backbone, batch: TokenBatch, *, trunk_BLH: Tensor | None = None) -> Tensor:
    """Raw scores (B,) of the role `reward` at the last real token of each row.

    `trunk_BLH` as in `Backbone.hidden`.
    """

    def forward() -> Tensor:
        hidden_BH = backbone.hidden(batch, trunk_BLH=trunk_BLH, wanted_M=batch.last_B)
        return backbone.scalar(ROLE, hidden_BH)

    with backbone.role(ROLE):
        return run_pass(backbone, forward)


@torch.no_grad()
def score_sequences(backbone: Backbone, sequences: Sequence[Sequence[int]], *, max_tokens: int) -> Tensor:
    """Raw scores of whole token sequences, in their order, on the CPU.

    Sequences of like length go through together, at most `max_tokens` padded tokens at a time.
    """
    scores = torch.zeros(len(sequences))
    for rows in token_batches([len(ids) for ids in sequences], max_tokens):
        batch = TokenBatch.of([sequences[row] for row in rows], backbone.pad_id, backbone.device)
        scores[rows] = raw_scores(backbone, batch).cpu()
    return scores


def score_sharded(backbone: Backbone, sequences: Sequence[Sequence[int]], *, max_tokens: int) -> Tensor:
    """`score_sequences`, of which every rank scores its shard; all ranks get all scores."""
    ours = world()
    with gathered_weights(backbone):
        mine = [sequences[row] for row in ours.shard(len(sequences))]
        return ours.unshard_tensor(score_sequences(backbone, mine, max_tokens=max_tokens), len(sequences))


def base_identity(sft: Manifest) -> str:
    """What a reward adapter belongs to: a hash of the weights and the vocabulary of the SFT model."""
    start = f"{sft.stage}/{MODEL}/"
    return _identity({p.removeprefix(start): sha for p, sha in sft.outputs.items() if p.startswith(start)})


def folder_identity(folder: Path) -> str:
    """`base_identity` of a model folder, from the files themselves."""
    return _identity(
        {p.name: sha256_file(p) for p in folder.iterdir() if p.is_file() and _identifies(p.name)}
    )


def _identity(files: Mapping[str, str]) -> str:
    chosen = sorted((name, sha) for name, sha in files.items() if _identifies(name))
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()


def _identifies(name: str) -> bool:
    return name.endswith(_WEIGHTS) or name in _VOCABULARIES

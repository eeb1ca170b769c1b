"""The model on held-out demonstrations: its loss, and its own answers to their prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.batching import pad, token_batches
from rlhf.model.chat import prompt_text
from rlhf.model.weights import gathered_model, gathered_weights
from rlhf.parallel.world import world
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import responses_text, unshard_rollouts
from rlhf.settings.groups import SamplingSettings
from sft.data import Example

# Shapes: B examples, L tokens of the longest, V vocabulary.

_MAX_TOKENS = 8192
_MAX_LOGITS = 2**28
"""Padded tokens, and elements of the logits (1 GiB in fp32), that are held at a time."""


def held_out_metrics(model: Any, examples: Sequence[Example]) -> dict[str, float]:
    """Mean loss and accuracy over every completion token (EOS included) of `examples`; {} for none.

    It does not depend on how examples are batched, nor on how many ranks share them. The model is left in the
    mode it was in.
    """
    if not examples:
        return {}
    ours, was_training = world(), model.training
    loss = correct = torch.zeros((), dtype=torch.float64)
    model.eval()
    with torch.no_grad(), gathered_model(model):
        for ids_BL, mask_BL, learned_BL in islice(_batches(model, examples), ours.rank, None, ours.size):
            logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits[:, :-1]
            logits_NV, targets_N = logits_BLV[learned_BL[:, 1:]].float(), ids_BL[:, 1:][learned_BL[:, 1:]]
            loss = loss + cross_entropy(logits_NV, targets_N, reduction="none").double().sum().cpu()
            correct = correct + (logits_NV.argmax(-1) == targets_N).sum().cpu()
        sums = ours.sum({"loss": float(loss), "correct": float(correct)})
    model.train(was_training)
    num_tokens = sum(len(example.completion_ids) for example in examples)
    return {
        "sft/heldout_loss_nats_per_token": sums["loss"] / num_tokens,
        "sft/heldout_token_accuracy": sums["correct"] / num_tokens,
    }


def _batches(model: Any, examples: Sequence[Example]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(ids, what is not padding, what is learned), (B, L) each, of examples of like length."""
    limit = min(_MAX_TOKENS, _MAX_LOGITS // model.config.get_text_config().vocab_size)
    for places in token_batches([example.num_tokens for example in examples], limit):
        yield _pad([examples[place] for place in places], model.device)


def _pad(rows: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    sequences = [row.prompt_ids + row.completion_ids for row in rows]
    ids_BL, mask_BL = pad(sequences, 0, device)  # any valid id: the mask says what is real
    prompt_lengths_B = torch.tensor([len(row.prompt_ids) for row in rows], device=device)
    places_L = torch.arange(ids_BL.shape[1], device=device)
    return ids_BL, mask_BL.long(), mask_BL & (places_L >= prompt_lengths_B[:, None])


@dataclass(frozen=True)
class Samples:
    """The model's own answers to held-out prompts."""

    metrics: dict[str, float]
    rows: list[list[str]]
    """prompt, reference, sample"""


COLUMNS = ["prompt", "reference", "sample"]


def sample_answers(
    backbone: Backbone,
    examples: Sequence[Example],
    settings: SamplingSettings,
    *,
    num_samples: int,
    seed: int,
) -> Samples:
    """Answer the prompts of the first `num_samples` examples that leave room for an answer."""
    room = backbone.max_length - settings.max_response_tokens
    fitting = [example for example in examples if len(example.prompt_ids) <= room]
    if num_samples and len(fitting) < len(examples):
        print(f"sft: {len(examples) - len(fitting)} of {len(examples)} prompts leave no room for a sample")
    chosen = fitting[:num_samples]
    if not chosen:
        return Samples({}, [])
    share = world().shard(len(chosen))
    with gathered_weights(backbone):
        own = sample(
            backbone,
            [chosen[index].prompt_ids for index in share],
            role=REFERENCE,
            settings=settings,
            keys=[(0, index, 0) for index in share],
            seed=seed,
        )
        rollouts = unshard_rollouts(own, len(chosen))
    answers = responses_text(backbone, rollouts, settings)
    return Samples(
        metrics={
            "sft/sample_eos_rate": float(rollouts.ended_B.float().mean()),
            "sft/sample_tokens_mean": float(rollouts.response_lengths_B.float().mean()),
        },
        rows=[
            [prompt_text(example.demonstration.prompt), example.demonstration.completion, answer]
            for example, answer in zip(chosen, answers, strict=True)
        ],
    )

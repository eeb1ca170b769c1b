"""Prompts with their responses, and what is taken from the model at their tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rlhf.model.backbone import Backbone
from rlhf.model.batching import TokenBatch
from rlhf.model.chat import decode_completion
from rlhf.parallel.world import world
from rlhf.settings.groups import SamplingSettings

# Shapes: B rollouts, P prompt tokens (left-padded), T response tokens (right-padded), L tokens of the longest
# prompt and response together, H hidden size, N real response tokens.


@dataclass(frozen=True)
class Rollouts:
    """Prompts and their responses. Masks, never a pad id, tell real tokens from padding."""

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BT: Tensor
    """The first EOS, if any, is the last real token."""
    response_mask_BT: Tensor
    sampled_logprobs_BT: Tensor
    """Log-probability of each token in the distribution it was drawn from, nats; 0 in padding."""
    sampled_entropy_BT: Tensor
    """Entropy of that distribution, nats; 0 in padding."""
    ended_B: Tensor
    """Whether the response ended by itself: with an EOS or a stop string."""
    trunk_BLH: Tensor | None = None
    """States that enter the lowest layer with an adapter, at the tokens of `input_ids_BL`."""

    def __len__(self) -> int:
        return self.response_ids_BT.shape[0]

    @cached_property
    def input_ids_BL(self) -> Tensor:
        """Prompt and response without a gap, from the first column on; 0 in the padding on the right."""
        both = torch.cat([self.prompt_ids_BP, self.response_ids_BT], dim=1)
        real = torch.cat([self.prompt_mask_BP, self.response_mask_BT], dim=1)
        ids_BL = torch.zeros(self.mask_BL.shape, dtype=both.dtype, device=both.device)
        return ids_BL.masked_scatter(self.mask_BL, both[real])

    @cached_property
    def mask_BL(self) -> Tensor:
        """Which of `input_ids_BL` are real tokens."""
        places_L = torch.arange(int(self.lengths_B.max()), device=self.ended_B.device)
        return places_L < self.lengths_B[:, None]

    @property
    def prompt_lengths_B(self) -> Tensor:
        return self.prompt_mask_BP.sum(1)

    @property
    def response_lengths_B(self) -> Tensor:
        return self.response_mask_BT.sum(1)

    @property
    def lengths_B(self) -> Tensor:
        """Real tokens, prompt and response."""
        return self.prompt_lengths_B + self.response_lengths_B

    def hidden(self, backbone: Backbone, wanted_M: Tensor) -> Tensor:
        """States (M, H) of the current role at places of the flattened `input_ids_BL`."""
        return backbone.hidden(self.batch, trunk_BLH=self.trunk_BLH, wanted_M=wanted_M)

    @cached_property
    def batch(self) -> TokenBatch:
        """The rollouts as the model takes them."""
        return TokenBatch(self.input_ids_BL, self.lengths_B)

    @property
    def last_B(self) -> Tensor:
        """Place of each row's last real token in the flattened `input_ids_BL`."""
        rows_B = torch.arange(len(self), device=self.ended_B.device)
        return rows_B * self.input_ids_BL.shape[1] + self.lengths_B - 1

    @cached_property
    def before_response_N(self) -> Tensor:
        """Places in the flattened `input_ids_BL` whose states predict the N real response tokens, row by row.

        A row's response begins right after its prompt, and the state before a token predicts it.
        """
        rows_N, places_N = self.response_mask_BT.nonzero(as_tuple=True)
        width = self.input_ids_BL.shape[1]
        return rows_N * width + self.prompt_lengths_B[rows_N] - 1 + places_N

    @cached_property
    def response_tokens_N(self) -> Tensor:
        """The real response tokens, row by row."""
        return self.response_ids_BT[self.response_mask_BT]

    def spread(self, values_N: Tensor) -> Tensor:
        """Values of the N real response tokens back on the (B, T) grid; 0 in padding."""
        grid_BT = torch.zeros(self.response_mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
        return grid_BT.masked_scatter(self.response_mask_BT, values_N)

    def select(self, rows: Sequence[int] | Tensor) -> "Rollouts":
        """The given rows, without the columns that are padding in all of them."""
        index = torch.as_tensor(rows, device=self.ended_B.device)
        prompt_mask, response_mask = self.prompt_mask_BP[index], self.response_mask_BT[index]
        width = int(prompt_mask.sum(1).max())
        first = prompt_mask.shape[1] - width
        length = max(1, int(response_mask.sum(1).max()))
        total = int((prompt_mask.sum(1) + response_mask.sum(1)).max())
        return Rollouts(
            prompt_ids_BP=self.prompt_ids_BP[index, first:],
            prompt_mask_BP=prompt_mask[:, first:],
            response_ids_BT=self.response_ids_BT[index, :length],
            response_mask_BT=response_mask[:, :length],
            sampled_logprobs_BT=self.sampled_logprobs_BT[index, :length],
            sampled_entropy_BT=self.sampled_entropy_BT[index, :length],
            ended_B=self.ended_B[index],
            trunk_BLH=None if self.trunk_BLH is None else self.trunk_BLH[index, :total],
        )

    def with_trunk(self, backbone: Backbone, max_tokens: int) -> "Rollouts":
        """The same rollouts with the states of the frozen trunk, if the backbone has one."""
        states_BLH: Tensor | None = None
        for rows, part in self.micro_batches(max_tokens):
            part_BLH = backbone.run_trunk(part.batch)
            if part_BLH is None:
                return self
            if states_BLH is None:
                shape = (*self.input_ids_BL.shape, part_BLH.shape[-1])
                states_BLH = torch.zeros(shape, dtype=part_BLH.dtype, device=part_BLH.device)
            states_BLH[rows, : part_BLH.shape[1]] = part_BLH
        return replace(self, trunk_BLH=states_BLH)

    def micro_batches(self, max_tokens: int) -> Iterator[tuple[Tensor, "Rollouts"]]:
        """Rows grouped by length into batches of at most `max_tokens` padded tokens (or one row)."""
        order = torch.argsort(self.lengths_B, stable=True)
        for rows in _pack(order, self.lengths_B, max_tokens):
            yield rows, self.select(rows)

    def prompt_lists(self) -> list[list[int]]:
        pairs = zip(self.prompt_ids_BP.tolist(), self.prompt_mask_BP.tolist(), strict=True)
        return [[i for i, real in zip(ids, mask, strict=True) if real] for ids, mask in pairs]

    def response_lists(self) -> list[list[int]]:
        pairs = zip(self.response_ids_BT.tolist(), self.response_lengths_B.tolist(), strict=True)
        return [ids[:length] for ids, length in pairs]


def merge_shares(own: Rollouts, num_rows: int) -> Rollouts:
    """All ranks' rollouts in the order of rows, from those that each has for its share; no trunk states."""
    ours = world()
    if ours.size == 1:
        return own

    def padded_left(values_BP: Tensor) -> Tensor:
        return ours.unshard_tensor(values_BP.flip(1), num_rows).flip(1)

    return Rollouts(
        prompt_ids_BP=padded_left(own.prompt_ids_BP),
        prompt_mask_BP=padded_left(own.prompt_mask_BP),
        response_ids_BT=ours.unshard_tensor(own.response_ids_BT, num_rows),
        response_mask_BT=ours.unshard_tensor(own.response_mask_BT, num_rows),
        sampled_logprobs_BT=ours.unshard_tensor(own.sampled_logprobs_BT, num_rows),
        sampled_entropy_BT=ours.unshard_tensor(own.sampled_entropy_BT, num_rows),
        ended_B=ours.unshard_tensor(own.ended_B, num_rows),
    )


def _pack(order_B: Tensor, lengths_B: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Consecutive rows of `order_B`, which ascends in length, in batches of at most `max_tokens`."""
    rows: list[int] = []
    for row, length in zip(order_B.tolist(), lengths_B[order_B].tolist(), strict=True):
        if rows and length * (len(rows) + 1) > max_tokens:
            yield torch.tensor(rows)
            rows = []
        rows.append(row)
    if rows:
        yield torch.tensor(rows)


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, P) and mask (B, P), padded on the left."""
    width = max(len(ids) for ids in sequences)
    ids_BP = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask_BP = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, ids in enumerate(sequences):
        ids_BP[row, width - len(ids) :] = torch.tensor(list(ids), dtype=torch.long)
        mask_BP[row, width - len(ids) :] = True
    return ids_BP.to(device), mask_BP.to(device)


def from_lists(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], backbone: Backbone
) -> Rollouts:
    """Rollouts of given token ids, for scoring texts that were not drawn here (log-probabilities 0)."""
    prompt_ids, prompt_mask = pad_left(prompts, backbone.pad_id, backbone.device)
    reversed_ids, reversed_mask = pad_left(
        [list(r)[::-1] for r in responses], backbone.pad_id, backbone.device
    )
    eos = set(backbone.eos_ids)
    return Rollouts(
        prompt_ids_BP=prompt_ids,
        prompt_mask_BP=prompt_mask,
        response_ids_BT=reversed_ids.flip(1),
        response_mask_BT=reversed_mask.flip(1),
        sampled_logprobs_BT=torch.zeros(reversed_ids.shape, device=backbone.device),
        sampled_entropy_BT=torch.zeros(reversed_ids.shape, device=backbone.device),
        ended_B=torch.tensor([bool(r) and r[-1] in eos for r in responses], device=backbone.device),
    )


def responses_text(backbone: Backbone, rollouts: Rollouts, settings: SamplingSettings) -> list[str]:
    """The responses as text, EOS and stop strings removed."""
    pairs = zip(rollouts.prompt_lists(), rollouts.response_lists(), strict=True)
    texts = [decode_completion(backbone.tokenizer, prompt, response) for prompt, response in pairs]
    return [_before_stop(text, settings.stop) for text in texts]


def _before_stop(text: str, stop: Sequence[str]) -> str:
    cuts = [text.index(string) for string in stop if string in text]
    return text[: min(cuts)] if cuts else text

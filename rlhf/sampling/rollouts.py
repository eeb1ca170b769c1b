"""Prompts with their responses, the micro-batches that they form, and the states kept of the frozen trunk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf.model.backbone import Backbone
from rlhf.model.batching import TokenBatch, pad, token_batches
from rlhf.model.chat import decode_completion
from rlhf.parallel.world import world
from rlhf.settings.groups import SamplingSettings

# Shapes: B rollouts, P prompt tokens (left-padded), T response tokens (right-padded), L tokens of the longest
# prompt and response together, H hidden size, N real response tokens.


@dataclass(frozen=True)
class TrunkStates:
    """What enters the lowest layer with an adapter, of the rollouts that this rank has run through the trunk.

    The states of a rollout are large and stay on the rank that computed them, which therefore trains on it.
    """

    states: tuple[Tensor, ...]
    """(tokens, H) of each rollout that was run here."""
    places: tuple[int | None, ...]
    """Where each rollout's states are in `states`; None: on another rank."""

    def select(self, rows: Sequence[int]) -> "TrunkStates":
        """The given rollouts; no state is copied."""
        return replace(self, places=tuple(self.places[row] for row in rows))

    def of_all_ranks(self, num_rows: int) -> "TrunkStates":
        """The same states, seen from the `num_rows` rollouts of which this rank had its `World.shard`."""
        size, rank = world().size, world().rank
        places = tuple(row // size if row % size == rank else None for row in range(num_rows))
        return replace(self, places=places)

    def padded(self) -> Tensor:
        """The states of all rollouts (B, L, H), which must be here."""
        states = [self.states[place] for place in self.places if place is not None]
        assert len(states) == len(self.places), "the states of a rollout are on another rank"
        return pad_sequence(states, batch_first=True)


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
    trunk: TrunkStates | None = None
    """What the layers below the lowest adapter made of the rollouts, where it was kept: see `with_trunk`."""

    def __len__(self) -> int:
        return self.response_ids_BT.shape[0]

    @property
    def prompt_lengths_B(self) -> Tensor:
        return self.prompt_mask_BP.sum(1)

    @property
    def response_lengths_B(self) -> Tensor:
        return self.response_mask_BT.sum(1)

    @cached_property
    def lengths(self) -> list[int]:
        """Real tokens of each row, prompt and response."""
        lengths: list[int] = (self.prompt_lengths_B + self.response_lengths_B).tolist()
        return lengths

    def prompt_lists(self) -> list[list[int]]:
        pairs = zip(self.prompt_ids_BP.tolist(), self.prompt_mask_BP.tolist(), strict=True)
        return [[i for i, real in zip(ids, mask, strict=True) if real] for ids, mask in pairs]

    def response_lists(self) -> list[list[int]]:
        pairs = zip(self.response_ids_BT.tolist(), self.response_lengths_B.tolist(), strict=True)
        return [ids[:length] for ids, length in pairs]

    def select(self, rows: Sequence[int]) -> "Rollouts":
        """The given rows, without the columns that are padding in all of them."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.ended_B.device)
        prompt_mask, response_mask = self.prompt_mask_BP[index], self.response_mask_BT[index]
        first = prompt_mask.shape[1] - int(prompt_mask.sum(1).max())
        width = max(1, int(response_mask.sum(1).max()))
        return Rollouts(
            prompt_ids_BP=self.prompt_ids_BP[index, first:],
            prompt_mask_BP=prompt_mask[:, first:],
            response_ids_BT=self.response_ids_BT[index, :width],
            response_mask_BT=response_mask[:, :width],
            sampled_logprobs_BT=self.sampled_logprobs_BT[index, :width],
            sampled_entropy_BT=self.sampled_entropy_BT[index, :width],
            ended_B=self.ended_B[index],
            trunk=None if self.trunk is None else self.trunk.select(rows),
        )

    def micro_batches(self, max_tokens: int) -> Iterator["RolloutBatch"]:
        """All rows, those of like length together, in batches of at most `max_tokens` padded tokens."""
        for rows in token_batches(self.lengths, max_tokens):
            yield self.batch(rows)

    def batch(self, rows: Sequence[int] | None = None) -> "RolloutBatch":
        """The given rows, or all, as the model takes them."""
        rows = range(len(self)) if rows is None else rows
        part = self.select(rows)
        ids = torch.cat([part.prompt_ids_BP, part.response_ids_BT], dim=1)
        is_real = torch.cat([part.prompt_mask_BP, part.response_mask_BT], dim=1)
        lengths_B = is_real.sum(1)
        # Prompts are padded on the left and responses on the right: both masks' tokens, row by row, are a
        # row's sequence without a gap, which the model wants to begin in the first column.
        mask_BL = torch.arange(int(lengths_B.max()), device=ids.device) < lengths_B[:, None]
        ids_BL = torch.zeros(mask_BL.shape, dtype=ids.dtype, device=ids.device)
        # A response begins right after its prompt, and the state before a token predicts it.
        rows_N, places_N = part.response_mask_BT.nonzero(as_tuple=True)
        before_N = rows_N * mask_BL.shape[1] + part.prompt_lengths_B[rows_N] - 1 + places_N
        return RolloutBatch(
            rows=list(rows),
            tokens=TokenBatch(ids_BL.masked_scatter(mask_BL, ids[is_real]), lengths_B),
            trunk_BLH=None if part.trunk is None else part.trunk.padded(),
            response_mask_BT=part.response_mask_BT,
            response_tokens_N=part.response_ids_BT[part.response_mask_BT],
            before_response_N=before_N,
        )

    def with_trunk(self, backbone: Backbone, max_tokens: int) -> "Rollouts":
        """The same rollouts with the states of the frozen trunk, if the backbone has one."""
        states: dict[int, Tensor] = {}
        for batch in self.micro_batches(max_tokens):
            states_BLH = backbone.run_trunk(batch.tokens)
            if states_BLH is None:
                return self
            for row, states_LH in zip(batch.rows, states_BLH, strict=True):
                states[row] = states_LH[: self.lengths[row]]
        rows = range(len(self))
        return replace(self, trunk=TrunkStates(tuple(states[row] for row in rows), tuple(rows)))


@dataclass(frozen=True)
class RolloutBatch:
    """Rollouts that go through the model together, whichever roles they pass: see `Rollouts.batch`."""

    rows: list[int]
    """Their rows among the rollouts that they were taken from."""
    tokens: TokenBatch
    """Prompt and response without a gap."""
    trunk_BLH: Tensor | None
    """States that enter the lowest layer with an adapter, at the tokens; None: all layers run."""
    response_mask_BT: Tensor
    response_tokens_N: Tensor
    """The real response tokens, row by row."""
    before_response_N: Tensor
    """Places in the flattened (B, L) tokens whose states predict the response tokens."""

    def take(self, grid_BT: Tensor) -> Tensor:
        """Values (N,) at the response tokens, from a grid of all rollouts."""
        width = self.response_mask_BT.shape[1]
        return grid_BT[self.rows, :width][self.response_mask_BT]

    def put(self, values_N: Tensor, grid_BT: Tensor) -> None:
        """Write values at the response tokens into a grid of all rollouts, and 0 next to them."""
        width = self.response_mask_BT.shape[1]
        zeros_BT = values_N.new_zeros(self.response_mask_BT.shape)
        grid_BT[self.rows, :width] = zeros_BT.masked_scatter(self.response_mask_BT, values_N)


def unshard_rollouts(own: Rollouts, num_rows: int) -> Rollouts:
    """All ranks' rollouts in the order of rows, from those that each has for its `World.shard`."""
    ours = world()
    if ours.size == 1:
        return own
    assert own.trunk is None, "states of the trunk stay where they are"

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


def from_lists(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], backbone: Backbone
) -> Rollouts:
    """Rollouts of given token ids, for scoring texts that were not drawn here (log-probabilities 0)."""
    prompt_ids, prompt_mask = pad(prompts, backbone.pad_id, backbone.device, left=True)
    response_ids, response_mask = pad(responses, backbone.pad_id, backbone.device)
    eos = set(backbone.eos_ids)
    return Rollouts(
        prompt_ids_BP=prompt_ids,
        prompt_mask_BP=prompt_mask,
        response_ids_BT=response_ids,
        response_mask_BT=response_mask,
        sampled_logprobs_BT=torch.zeros(response_ids.shape, device=backbone.device),
        sampled_entropy_BT=torch.zeros(response_ids.shape, device=backbone.device),
        ended_B=torch.tensor([bool(r) and r[-1] in eos for r in responses], device=backbone.device),
    )


def responses_text(backbone: Backbone, rollouts: Rollouts, settings: SamplingSettings) -> list[str]:
    """The responses as text, EOS and stop strings removed."""
    pairs = zip(rollouts.prompt_lists(), rollouts.response_lists(), strict=True)
    texts = [decode_completion(backbone.tokenizer, prompt, response) for prompt, response in pairs]
    return [before_stop(text, settings.stop) for text in texts]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    cuts = [text.index(string) for string in stop if string in text]
    return text[: min(cuts)] if cuts else text

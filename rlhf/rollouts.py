"""Sampling from a role of the backbone, and the padded batch that comes out.

The noise of a token is a function of (seed, key, position) alone, where a row's key says which iteration,
prompt and sample it is. What is drawn therefore does not depend on how rows are batched or ordered, or on
when a neighbour finishes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf.backbone import Backbone
from rlhf.chat import decode_completion
from rlhf.config import SamplingSettings

# Shapes: B rollouts, P prompt tokens (left-padded), T response tokens (right-padded), L = P + T,
# V vocabulary.

Key = tuple[int, ...]


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
    ended_B: Tensor
    """Whether the response ended by itself: with an EOS or a stop string."""

    def __len__(self) -> int:
        return self.response_ids_BT.shape[0]

    @property
    def input_ids_BL(self) -> Tensor:
        return torch.cat([self.prompt_ids_BP, self.response_ids_BT], dim=1)

    @property
    def mask_BL(self) -> Tensor:
        return torch.cat([self.prompt_mask_BP, self.response_mask_BT], dim=1)

    @property
    def response_lengths_B(self) -> Tensor:
        return self.response_mask_BT.sum(1)

    @property
    def lengths_B(self) -> Tensor:
        """Real tokens, prompt and response."""
        return self.prompt_mask_BP.sum(1) + self.response_lengths_B

    def at_response(self, hidden_BLH: Tensor) -> Tensor:
        """Hidden states (N, H) that predict the N real response tokens, row by row.

        Response token t stands at column P + t, and the state before it, column P + t - 1, predicts it.
        """
        start = self.prompt_ids_BP.shape[1] - 1
        return hidden_BLH[:, start : start + self.response_ids_BT.shape[1]][self.response_mask_BT]

    def at_end(self, hidden_BLH: Tensor) -> Tensor:
        """Hidden states (B, H) at the last real token of each row."""
        last_B = self.prompt_ids_BP.shape[1] + self.response_lengths_B - 1
        return hidden_BLH[torch.arange(len(self), device=last_B.device), last_B]

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
        return Rollouts(
            prompt_ids_BP=self.prompt_ids_BP[index, first:],
            prompt_mask_BP=prompt_mask[:, first:],
            response_ids_BT=self.response_ids_BT[index, :length],
            response_mask_BT=response_mask[:, :length],
            sampled_logprobs_BT=self.sampled_logprobs_BT[index, :length],
            ended_B=self.ended_B[index],
        )

    def micro_batches(self, max_tokens: int) -> Iterator[tuple[Tensor, "Rollouts"]]:
        """Rows grouped by length into batches of at most `max_tokens` padded tokens (or one row)."""
        order = torch.argsort(self.lengths_B, stable=True)
        for rows in _pack(order, self.prompt_mask_BP.sum(1), self.response_lengths_B, max_tokens):
            yield rows, self.select(rows)

    def prompt_lists(self) -> list[list[int]]:
        pairs = zip(self.prompt_ids_BP.tolist(), self.prompt_mask_BP.tolist(), strict=True)
        return [[i for i, real in zip(ids, mask, strict=True) if real] for ids, mask in pairs]

    def response_lists(self) -> list[list[int]]:
        pairs = zip(self.response_ids_BT.tolist(), self.response_lengths_B.tolist(), strict=True)
        return [ids[:length] for ids, length in pairs]


def _pack(order_B: Tensor, prompts_B: Tensor, responses_B: Tensor, max_tokens: int) -> Iterator[Tensor]:
    rows: list[int] = []
    width = length = 0
    for row in order_B.tolist():
        wider, longer = max(width, int(prompts_B[row])), max(length, int(responses_B[row]))
        if rows and (wider + longer) * (len(rows) + 1) > max_tokens:
            yield torch.tensor(rows)
            rows, wider, longer = [], int(prompts_B[row]), int(responses_B[row])
        rows.append(row)
        width, length = wider, longer
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
        ended_B=torch.tensor([bool(r) and r[-1] in eos for r in responses], device=backbone.device),
    )


def sample(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    role: str,
    settings: SamplingSettings,
    keys: Sequence[Key],
    seed: int,
) -> Rollouts:
    """Draw one response for every prompt from `role`.

    `keys[i]` (iteration, prompt, sample) together with `seed` and the position determines row i's noise.
    Prompts of like length are decoded together; the rows come back in the order given.
    """
    assert len(prompts) == len(keys)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    responses: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        uniforms = noise(seed, [keys[row] for row in rows], settings.max_response_tokens)
        with backbone.role(role), torch.inference_mode():
            drawn = _decode(backbone, [prompts[row] for row in rows], uniforms, settings)
        for row, (ids, scores, end) in zip(rows, drawn, strict=True):
            responses[row], logprobs[row], ended[row] = ids, scores, end
    rollouts = from_lists(prompts, responses, backbone)
    sampled_BT = torch.zeros(rollouts.response_ids_BT.shape, device=backbone.device)
    flat = torch.tensor([score for row in logprobs for score in row], device=backbone.device)
    sampled_BT[rollouts.response_mask_BT] = flat
    ended_B = torch.tensor(ended, device=backbone.device)
    return replace(rollouts, sampled_logprobs_BT=sampled_BT, ended_B=ended_B)


def responses_text(backbone: Backbone, rollouts: Rollouts, settings: SamplingSettings) -> list[str]:
    """The responses as text, EOS and stop strings removed."""
    pairs = zip(rollouts.prompt_lists(), rollouts.response_lists(), strict=True)
    texts = [decode_completion(backbone.tokenizer, prompt, response) for prompt, response in pairs]
    return [_before_stop(text, settings.stop) for text in texts]


def noise(seed: int, keys: Sequence[Key], num_positions: int) -> Tensor:
    """Uniform numbers (B, num_positions) in [0, 1), float64: a hash of (seed, key, position) each.

    SplitMix64's finalizer (Steele, Lea, Flood 2014) is applied once per integer of the key.
    """
    state = np.full((len(keys), 1), np.uint64(seed), dtype=np.uint64)
    for part in np.array(keys, dtype=np.uint64).reshape(len(keys), -1).T:
        state = _mix(state ^ _mix(part[:, None]))
    bits = _mix(state ^ _mix(np.arange(num_positions, dtype=np.uint64)[None, :]))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _decode(
    backbone: Backbone, prompts: Sequence[Sequence[int]], uniforms_BT: Tensor, settings: SamplingSettings
) -> list[tuple[list[int], list[float], bool]]:
    """Decode one batch with a KV cache; rows that have ended leave the batch when enough of them have."""
    input_ids, mask = pad_left(prompts, backbone.pad_id, backbone.device)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    uniforms_BT = uniforms_BT.to(backbone.device)
    eos = torch.tensor(backbone.eos_ids, device=backbone.device)
    cache = DynamicCache(config=backbone.model.config)
    alive = torch.arange(len(prompts), device=backbone.device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=backbone.device)
    results: list[tuple[list[int], list[float], bool]] = [([], [], False) for _ in prompts]
    for step in range(settings.max_response_tokens):
        extra = {"position_ids": positions} if backbone._takes_positions else {}
        output = backbone.model(
            input_ids=input_ids,
            attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        )
        logits_BV = output.logits[:, -1].float() / settings.temperature
        tokens, scores = _draw(logits_BV, uniforms_BT[alive, step])
        ends = torch.isin(tokens, eos)
        for row, token, score, end, over in zip(
            alive.tolist(), tokens.tolist(), scores.tolist(), ends.tolist(), done.tolist(), strict=True
        ):
            if over:
                continue
            ids, row_scores, _ = results[row]
            ids.append(token)
            row_scores.append(score)
            results[row] = (ids, row_scores, end or _stopped(backbone, prompts[row], ids, settings.stop))
        done = torch.tensor([results[row][2] for row in alive.tolist()], device=backbone.device)
        if bool(done.all()):
            break
        keep = (~done).nonzero().squeeze(1)
        if len(keep) <= 0.75 * len(done):
            cache.batch_select_indices(keep)
            alive, mask, tokens, positions, done = (x[keep] for x in (alive, mask, tokens, positions, done))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = positions[:, -1:] + 1
        input_ids = tokens.unsqueeze(1)
    return results


def _draw(logits_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution at `uniforms_B`: one token and its log-probability a row."""
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    targets_B1 = (uniforms_B * cumulative_BV[:, -1]).unsqueeze(1)
    tokens_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp(max=logits_BV.shape[1] - 1)
    return tokens_B1.squeeze(1), logprobs_BV.gather(1, tokens_B1).squeeze(1)


def _stopped(backbone: Backbone, prompt: Sequence[int], ids: list[int], stop: Sequence[str]) -> bool:
    if not stop:
        return False
    text = decode_completion(backbone.tokenizer, list(prompt), ids)
    return any(string in text for string in stop)


def _before_stop(text: str, stop: Sequence[str]) -> str:
    cuts = [text.index(string) for string in stop if string in text]
    return text[: min(cuts)] if cuts else text

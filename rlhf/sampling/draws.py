"""What has been drawn for every row, and the drawing of the next tokens from their logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.model.backbone import Backbone
from rlhf.model.batching import pad
from rlhf.model.chat import decode_completion
from rlhf.sampling.rollouts import Rollouts
from rlhf.settings.groups import SamplingSettings

# Shapes: R rows to be sampled, N of them that draw together, T response tokens, V vocabulary.


class Draws:
    """The tokens of every row so far, with their log-probabilities and entropies.

    A row is a prompt's number in the order given, wherever and whenever it is decoded: so what comes back
    does not depend on batches, slots or the order in which rows finish.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        uniforms_RT: Tensor,
        settings: SamplingSettings,
    ) -> None:
        self._backbone = backbone
        self._prompts = prompts
        self._settings = settings
        self._uniforms_RT = uniforms_RT
        self._eos = torch.tensor(backbone.eos_ids, device=backbone.device)
        self._tokens_RT = torch.zeros(uniforms_RT.shape, dtype=torch.long, device=backbone.device)
        self._logprobs_RT = torch.zeros(uniforms_RT.shape, device=backbone.device)
        self._entropies_RT = torch.zeros(uniforms_RT.shape, device=backbone.device)
        self._lengths_R = torch.zeros(len(prompts), dtype=torch.long, device=backbone.device)
        self._ended_R = torch.zeros(len(prompts), dtype=torch.bool, device=backbone.device)

    def draw(self, rows_N: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the next token of `rows_N` from their logits; the tokens, and which rows are finished now.

        Inverts the cumulative distribution at each row's uniform number of this position.
        """
        places_N = self._lengths_R[rows_N]
        logprobs_NV = torch.log_softmax(logits_NV / self._settings.temperature, dim=-1)
        self._entropies_RT[rows_N, places_N] = -logprobs_NV.exp().mul_(logprobs_NV).sum(-1)
        # In fp32 a sum over a large vocabulary would round away the tail's small probabilities.
        cumulative_NV = logprobs_NV.double().exp_().cumsum_(-1)
        # The last sum is 1 but for rounding: measured against it, every uniform number finds a token.
        targets_N1 = self._uniforms_RT[rows_N, places_N].unsqueeze(1) * cumulative_NV[:, -1:]
        tokens_N1 = torch.searchsorted(cumulative_NV, targets_N1, right=True)
        tokens_N1 = tokens_N1.clamp_(max=logits_NV.shape[1] - 1)
        self._logprobs_RT[rows_N, places_N] = logprobs_NV.gather(1, tokens_N1).squeeze(1)
        tokens_N = tokens_N1.squeeze(1)
        self._tokens_RT[rows_N, places_N] = tokens_N
        self._lengths_R[rows_N] = places_N + 1
        ended_N = torch.isin(tokens_N, self._eos)
        if self._settings.stop:
            ended_N |= self._stopped(rows_N)
        self._ended_R[rows_N] = ended_N
        is_full_N = places_N + 1 == self._tokens_RT.shape[1]
        return tokens_N, ended_N | is_full_N

    def rollouts(self) -> Rollouts:
        """All rows with what was drawn for them."""
        width = int(self._lengths_R.max())
        mask_RT = torch.arange(width, device=self._lengths_R.device) < self._lengths_R[:, None]
        backbone = self._backbone
        prompt_ids, prompt_mask = pad(self._prompts, backbone.pad_id, backbone.device, left=True)
        return Rollouts(
            prompt_ids_BP=prompt_ids,
            prompt_mask_BP=prompt_mask,
            response_ids_BT=torch.where(mask_RT, self._tokens_RT[:, :width], self._backbone.pad_id),
            response_mask_BT=mask_RT,
            sampled_logprobs_BT=self._logprobs_RT[:, :width],
            sampled_entropy_BT=self._entropies_RT[:, :width],
            ended_B=self._ended_R,
        )

    def _stopped(self, rows_N: Tensor) -> Tensor:
        """Whether the text of each of `rows_N` holds a stop string: one may begin in any token."""
        found: list[bool] = []
        for row, length in zip(rows_N.tolist(), self._lengths_R[rows_N].tolist(), strict=True):
            ids = self._tokens_RT[row, :length].tolist()
            text = decode_completion(self._backbone.tokenizer, list(self._prompts[row]), ids)
            found.append(any(string in text for string in self._settings.stop))
        return torch.tensor(found, device=rows_N.device)

"""Log-probabilities of tokens from hidden states, with one block of logits and no copies of it."""

from typing import Any

import torch
from torch import Tensor

from rlhf.model.vocabulary import exclude

# Shapes: N tokens, H hidden size, V vocabulary.


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float,
    keep: bool,
    excluded: Tensor | None = None,
) -> Tensor:
    """Log-probabilities (N,) in fp32, nats: log softmax(H Wᵀ / temperature) at the targets.

    Ids in `excluded` have no probability: see `rlhf.model.vocabulary`.

    The block of logits becomes its own gradient, in place. With `keep` it stays until the backward pass, else
    it is computed again there. The weight gets no gradient.
    """
    logprobs_N: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, targets_N, temperature, keep, excluded
    )
    return logprobs_N


def _scaled_logits(
    hidden_NH: Tensor, weight_VH: Tensor, temperature: float, excluded: Tensor | None
) -> Tensor:
    logits_NV = exclude((hidden_NH @ weight_VH.t()).float(), excluded)
    return logits_NV if temperature == 1 else logits_NV.div_(temperature)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        temperature: float,
        keep: bool,
        excluded: Tensor | None,
    ) -> Tensor:
        logits_NV = _scaled_logits(hidden_NH, weight_VH, temperature, excluded)
        targets_N1 = targets_N[:, None]
        chosen_N = logits_NV.gather(1, targets_N1).squeeze(1)
        if ctx.needs_input_grad[0] and keep:
            totals_N = torch.logsumexp(logits_NV, 1)
            ctx.save_for_backward(hidden_NH, weight_VH, targets_N1, totals_N, logits_NV)
        else:
            highest_N1 = logits_NV.amax(1, keepdim=True)
            totals_N = logits_NV.sub_(highest_N1).exp_().sum(1).log_().add_(highest_N1.squeeze(1))
            ctx.save_for_backward(hidden_NH, weight_VH, targets_N1, totals_N, None)
        ctx.temperature = temperature
        ctx.excluded = excluded
        return chosen_N - totals_N

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, targets_N1, totals_N, logits_NV = ctx.saved_tensors
        if logits_NV is None:
            logits_NV = _scaled_logits(hidden_NH, weight_VH, ctx.temperature, ctx.excluded)
        gradient_N1 = gradients[0][:, None] / ctx.temperature
        # d log p(target) / d logits = onehot(target) − softmax.
        logits_NV.sub_(totals_N[:, None]).exp_().mul_(-gradient_N1)
        logits_NV.scatter_add_(1, targets_N1, gradient_N1)
        return logits_NV.to(weight_VH.dtype) @ weight_VH, None, None, None, None, None

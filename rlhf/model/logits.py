"""Logits and log-probabilities of tokens, made from last hidden states as the model itself makes them."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf.model.layers.logprobs import token_logprobs
from rlhf.model.layers.remainder import Remainder
from rlhf.model.vocabulary import exclude
from rlhf.parallel.deepspeed.sharded import whole_shape

# Shapes: N tokens, H hidden size, V vocabulary.

_LOGIT_ELEMENTS_KEPT = 2**26
"""Up to this many logits, a (N, V) block waits for the backward pass: 256 MiB in fp32."""
_LOGIT_ELEMENTS_PER_CHUNK = 2**24
"""Otherwise logits are made in chunks of at most this many, and made again in the backward pass: 64 MiB."""


class OutputHead:
    """What a model makes of last hidden states: its head, and what its architecture does before and after."""

    def __init__(
        self, model: PreTrainedModel, *, same_role: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._model = model
        self._same_role = same_role
        """A block in the role that is on when it is called: an adapter may be on a part of the head."""
        self._remainder = Remainder(model)
        self.is_alone = self._remainder.is_head_alone()
        """Whether logits are the product of the states with the head's weight, and nothing else."""

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits (..., N, V) in fp32, those of the model's own forward pass."""
        if self.is_alone:
            head = self._model.get_output_embeddings()
            # Some decoders (Mamba) keep their states in fp32, and their models round them for the head.
            logits_NV: Tensor = head(hidden_NH.to(head.weight.dtype)).float()
            return logits_NV
        flat_NH = hidden_NH.reshape(-1, hidden_NH.shape[-1])
        logits = self._remainder(flat_NH).float()
        return logits.reshape(*hidden_NH.shape[:-1], logits.shape[-1])

    def logprobs(
        self, hidden_NH: Tensor, targets_N: Tensor, *, temperature: float, excluded: Tensor | None = None
    ) -> Tensor:
        """Log-probability (N,) of the next token, nats, under softmax(logits / temperature).

        Ids in `excluded` have no probability: see `rlhf.model.vocabulary`. Beyond a moderate size the (N, V)
        logits exist one chunk at a time, in the backward pass too.
        """

        def one(hidden: Tensor, targets: Tensor) -> Tensor:
            logits_NV = exclude(self.logits(hidden), excluded)
            return -F.cross_entropy(logits_NV / temperature, targets, reduction="none")

        vocab_size = whole_shape(self._model.get_output_embeddings().weight)[0]
        needs_grad = torch.is_grad_enabled() and hidden_NH.requires_grad
        keep = needs_grad and len(hidden_NH) * vocab_size <= _LOGIT_ELEMENTS_KEPT
        rows = len(hidden_NH) if keep else max(1, _LOGIT_ELEMENTS_PER_CHUNK // vocab_size)
        chunks = list(zip(hidden_NH.split(rows), targets_N.split(rows), strict=True))
        if (weight_VH := self._plain_weight()) is not None:
            return torch.cat(
                [
                    token_logprobs(
                        hidden.to(weight_VH.dtype),
                        weight_VH,
                        targets,
                        temperature=temperature,
                        keep=keep,
                        excluded=excluded,
                    )
                    for hidden, targets in chunks
                ]
            )
        if needs_grad and not keep:
            # The backward pass comes when the role's block has been left.
            role = self._same_role
            contexts = lambda: (contextlib.nullcontext(), role())  # noqa: E731
            return torch.cat(
                [checkpoint(one, *chunk, use_reentrant=False, context_fn=contexts) for chunk in chunks]
            )
        return torch.cat([one(*chunk) for chunk in chunks])

    def _plain_weight(self) -> Tensor | None:
        """The head's weight (V, H), where logits are its product with the states and it is no parameter."""
        head = self._model.get_output_embeddings()
        # Under ZeRO-3 a hook gathers the weight, when the module is called and only then.
        if not self.is_alone or head._forward_pre_hooks or head.weight.requires_grad:
            return None
        weight_VH: Tensor = head.weight
        return weight_VH

"""Logits and log-probabilities of tokens, made from last hidden states by the base's output head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf.model.layers.logprobs import token_logprobs

# Shapes: N tokens, H hidden size, V vocabulary.

_LOGIT_ELEMENTS_KEPT = 2**26
"""Up to this many logits, a (N, V) block waits for the backward pass: 256 MiB in fp32."""
_LOGIT_ELEMENTS_PER_CHUNK = 2**24
"""Otherwise logits are made in chunks of at most this many, and made again in the backward pass: 64 MiB."""
_LOGIT_CHANGES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""What some architectures do to logits, by the name of the setting."""


class OutputHead:
    """The output head of a model, with what its architecture does to logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits (N, V) in fp32, with the base's own scaling and soft cap."""
        logits = self._model.get_output_embeddings()(hidden_NH).float()
        config = self._model.config.get_text_config()
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        logits_NV: Tensor = logits
        return logits_NV

    def logprobs(self, hidden_NH: Tensor, targets_N: Tensor, *, temperature: float) -> Tensor:
        """Log-probability (N,) of the next token, nats, under softmax(logits / temperature).

        Beyond a moderate size the (N, V) logits exist one chunk at a time, in the backward pass too.
        """

        def one(hidden: Tensor, targets: Tensor) -> Tensor:
            return -F.cross_entropy(self.logits(hidden) / temperature, targets, reduction="none")

        vocab_size = int(self._model.get_output_embeddings().out_features)
        needs_grad = torch.is_grad_enabled() and hidden_NH.requires_grad
        keep = needs_grad and len(hidden_NH) * vocab_size <= _LOGIT_ELEMENTS_KEPT
        rows = len(hidden_NH) if keep else max(1, _LOGIT_ELEMENTS_PER_CHUNK // vocab_size)
        chunks = list(zip(hidden_NH.split(rows), targets_N.split(rows), strict=True))
        if (weight_VH := self._plain_weight()) is not None:
            return torch.cat(
                [token_logprobs(h, weight_VH, t, temperature=temperature, keep=keep) for h, t in chunks]
            )
        if needs_grad and not keep:
            return torch.cat([checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([one(*chunk) for chunk in chunks])

    def _plain_weight(self) -> Tensor | None:
        """The head's weight (V, H), where logits are its product with the states and nothing else."""
        head = self._model.get_output_embeddings()
        config = self._model.config.get_text_config()
        # Under ZeRO-3 a hook gathers the weight, when the module is called and only then.
        is_plain = type(head) is nn.Linear and head.bias is None and not head._forward_pre_hooks
        is_frozen = is_plain and not head.weight.requires_grad
        if not is_frozen or any(getattr(config, name, None) is not None for name in _LOGIT_CHANGES):
            return None
        weight_VH: Tensor = head.weight
        return weight_VH

"""SFT's training and its held-out loss, run on a model without memory.

Training as TRL's `SFTTrainer` does it: the decoder under autocast, then the fused head over every position.
Data are replaced by sequences of the greatest length.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from plan.fused_head import fused_logprobs
from plan.inputs import Batch, Run, token_ids, token_mask
from plan.ledger import ACTIVATIONS, LOGITS, Ledger
from rlhf.settings.groups import LoraSettings

# Shapes: B sequences, L tokens of a sequence, N tokens with a next one, V vocabulary.


def fine_tuning(batch: Batch, *, bf16: bool, checkpointing: bool, again: bool, on_cuda: bool) -> Run:
    """A micro-batch as TRL's `SFTTrainer` runs it; with `again`, a second next to the first's gradients."""

    def run(model: Any, ledger: Ledger) -> None:
        model.train()
        if checkpointing:
            _checkpoint(model)
        ledger.watch_gradients(p for p in model.parameters() if p.requires_grad)
        for _ in range(2 if again else 1):
            _forward_backward(model, ledger, batch, bf16=bf16, on_cuda=on_cuda)

    return run


def _forward_backward(model: Any, ledger: Ledger, batch: Batch, *, bf16: bool, on_cuda: bool) -> None:
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    ids_BL = token_ids(batch.rows, batch.tokens)
    mask_BL = token_mask(batch.rows, batch.tokens)
    ledger.book(ACTIVATIONS)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with ledger.section("forward"):
            output = plain.get_decoder()(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
        ledger.head_follows(output.last_hidden_state)
        with ledger.section("head"):
            logprobs_N = fused_logprobs(
                output.last_hidden_state[:, :-1].flatten(0, 1),
                plain.get_output_embeddings(),
                ids_BL[:, 1:].flatten(),
                softcap=getattr(plain.config.get_text_config(), "final_logit_softcapping", None),
                on_cuda=on_cuda,
            )
            loss = -logprobs_N.sum()
    del output, logprobs_N
    with ledger.section("backward"):
        loss.backward()


def _checkpoint(model: Any) -> None:
    """Switch gradient checkpointing on as the trainer does."""
    with warnings.catch_warnings():
        # Its name changes from transformers 5 to 6.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if hasattr(model, "peft_config"):
        model.enable_input_require_grads()


def fine_tuned(lora: LoraSettings | None) -> Callable[[Any], Any]:
    """What makes of a network the model that `SFTTrainer` trains: the network, with LoRA if there is any."""

    def wrap(network: Any) -> Any:
        if lora is None:
            return network
        options: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "task_type": "CAUSAL_LM"}
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 under the old name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            return get_peft_model(network, LoraConfig(target_modules=lora.target_modules, **options))

    return wrap


def held_out(batch: Batch) -> Run:
    """The loss of held-out examples: full logits of a batch, and those of its completions in fp32."""

    def run(model: Any, ledger: Ledger) -> None:
        model.eval()
        chosen_N = token_ids(batch.rows * (batch.tokens - 1))
        with torch.no_grad():
            ids_BL = token_ids(batch.rows, batch.tokens)
            mask_BL = token_mask(batch.rows, batch.tokens)
            for _ in range(2):  # a batch's logits go only when the next one's are there
                ledger.book(ACTIVATIONS)
                output = model.get_decoder()(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
                ledger.book(LOGITS)
                logits_BLV = model.get_output_embeddings()(output.last_hidden_state)[:, :-1]
                del output
                logits_NV = logits_BLV.flatten(0, 1).index_select(0, chosen_N).float()
                cross_entropy(logits_NV, chosen_N, reduction="none")

    return run

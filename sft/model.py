"""The model that the stage starts from, and the plain Hugging Face model that it leaves."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from rlhf.errors import UserError
from rlhf.model.agreement import check_agreement, say_how_far_it_sees
from rlhf.model.architecture import context_length
from rlhf.model.causality import check_causal
from rlhf.model.chat import eos_ids
from rlhf.model.loading import (
    check_model_path,
    check_whole_model,
    embedding_rows,
    loading,
    loading_weights,
    quiet_transformers,
)
from rlhf.model.logits import OutputHead
from rlhf.model.vocabulary import ADDED_PAD, add_pad, check_vocabulary, unsampled_ids
from rlhf.settings.groups import ModelSettings, SamplingSettings
from sft import scratch
from sft.config import SFTSettings

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Start:
    """A causal language model with its tokenizer, before training."""

    model: Any
    """A `PreTrainedModel`."""
    tokenizer: Any
    """A `PreTrainedTokenizerBase`."""
    eos_ids: tuple[int, ...]
    """Every id that ends a response, as tokenizer and generation settings name them."""

    @property
    def context(self) -> int:
        """Tokens that the model can see."""
        return context_length(self.model.config)


def check_tokenizer(model: ModelSettings) -> None:
    """Check, before any data is read and without the weights, that the tokenizer fits the model.

    Raises:
        UserError: there is no such model, or a token has no row in its embedding.
    """
    if model.path is None:
        return
    quiet_transformers()
    check_model_path(model.path, revision=model.revision)
    common: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    with loading("tokenizer", model.path):
        tokenizer = AutoTokenizer.from_pretrained(model.path, **common)
    with loading("model", model.path):
        config: Any = AutoConfig.from_pretrained(model.path, **common)
    num_rows = getattr(config.get_text_config(), "vocab_size", None)
    if num_rows is not None:
        check_vocabulary(tokenizer, num_rows, where=f"model.path={model.path}")


def start(model: ModelSettings, settings: SFTSettings, *, texts: Iterable[str], seed: int) -> Start:
    """Load the model of the recipe, or make it from nothing with a tokenizer trained on `texts`.

    Raises:
        UserError: the model does not exist, cannot be loaded, or lacks weights.
    """
    quiet_transformers()
    if model.scratch is not None:
        tokenizer: Any = scratch.train_tokenizer(texts, model.scratch)
        network: Any = scratch.new_model(model.scratch, tokenizer, seed=seed, attention=model.attention)
    else:
        network, tokenizer = _load(model, _dtype(model, settings))
    say_how_far_it_sees(network, str(model.path))
    check_agreement(network, OutputHead(network, same_role=nullcontext), where=f"model.path={model.path}")
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # it would keep that row's gradient out, and it may be a real token
    return Start(network, tokenizer, eos_ids(tokenizer, network.generation_config))


def choose_pad(start: Start, used_ids: Iterable[int]) -> int:
    """An id to pad with that cannot be the last token of a response, made the tokenizer's own.

    Plain transformers finds the last token of a sequence to classify by `input_ids != pad_token_id`, so a pad
    that is an EOS would hide the EOS that was really there. And a pad is a special token, which decoding
    leaves out, so that it is no word. In order of preference: the tokenizer's own pad, its unknown token, its
    BOS, the highest special token that occurs in no demonstration (an EOS is none of them), and a new one.

    Raises:
        UserError: a new one has no room in the embedding, which cannot grow.
    """
    tokenizer = start.tokenizer
    num_rows = embedding_rows(start.model)
    named = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    special = [
        i for i, token in sorted(tokenizer.added_tokens_decoder.items(), reverse=True) if token.special
    ]
    used = set(used_ids)
    for candidate in (*named, *(i for i in special if i not in used)):
        if candidate is not None and candidate not in start.eos_ids and 0 <= candidate < num_rows:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(candidate)
            return int(candidate)
    pad = add_pad(tokenizer, start.model)
    print(f"sft: the tokenizer has no pad token: it gets {ADDED_PAD}, id {pad}, which is never sampled")
    return pad


def set_tokens(start: Start, model: Any, *, pad_id: int, sampling: SamplingSettings) -> None:
    """Make the published configuration agree with the tokenizer on every special token."""
    tokenizer = start.tokenizer
    config = model.config.get_text_config()
    config.pad_token_id = pad_id
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = _one_or_list(start.eos_ids)
    model.config.use_cache = True
    # What our sampler never draws (`rlhf.model.vocabulary`), transformers does not draw either.
    unsampled = unsampled_ids(tokenizer, embedding_rows(model), eos_ids=start.eos_ids)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_one_or_list(start.eos_ids),
        pad_token_id=pad_id,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_response_tokens,
        suppress_tokens=unsampled or None,
    )


def write(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer as plain transformers reads them."""
    model.config.name_or_path = ""  # the folder that training began with: of no use to others
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def training_precision(model: ModelSettings) -> Literal["fp32", "bf16"]:
    """The recipe's precision; for a quantized one, that in which the checkpoint is stored (fp16: bf16).

    Quantization says how the later stages hold a base that they never change. This stage changes it: its
    result is everyone's reference, and would carry the quantization's error twice if it were made on a
    quantized copy.
    """
    if model.precision == "fp32" or model.precision == "bf16":
        return model.precision
    return "bf16" if _stored_dtype(model) in (torch.bfloat16, torch.float16) else "fp32"


def _stored_dtype(model: ModelSettings) -> torch.dtype | None:
    """What the checkpoint says that its weights are stored in."""
    if model.path is None:
        return None
    check_model_path(model.path, revision=model.revision)
    try:
        config: Any = AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError):
        return None  # loading the model will say what is wrong with it
    stored: torch.dtype | None = config.get_text_config().dtype or config.dtype
    return stored


def published_dtype(model: ModelSettings, settings: SFTSettings) -> torch.dtype | None:
    """What the weights are stored in: `training_precision`, or a model taken as it is unchanged."""
    return None if settings.method == "none" and model.path else _DTYPES[training_precision(model)]


def _dtype(model: ModelSettings, settings: SFTSettings) -> torch.dtype | str:
    """Full training keeps fp32 weights, also where it computes in bf16."""
    if settings.method == "none":
        return "auto"
    return torch.float32 if settings.method == "full" else _DTYPES[training_precision(model)]


def _in_parts(model: ModelSettings, dtype: torch.dtype | str) -> AbstractContextManager[None]:
    """Inside the block ZeRO-3 cuts weights as they are read, but for fp16 that is to stay fp16."""
    if dtype == "auto":
        dtype = _stored_dtype(model) or torch.float32
    if dtype == torch.float16:
        return nullcontext()
    return loading_weights("bf16" if dtype == torch.bfloat16 else "fp32")


def _load(settings: ModelSettings, dtype: torch.dtype | str) -> tuple[Any, Any]:
    assert settings.path is not None
    check_model_path(settings.path, revision=settings.revision)
    common: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    with loading("tokenizer", settings.path):
        tokenizer = AutoTokenizer.from_pretrained(settings.path, **common)
    with loading("model", settings.path, settings=settings), _in_parts(settings, dtype):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            settings.path,
            dtype=dtype,
            attn_implementation=settings.attention,
            output_loading_info=True,
            **common,
        )
    model, report = loaded
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(
            "the checkpoint is stored quantized, and fine-tuning needs the weights themselves",
            where=f"model.path={settings.path}",
            fix="Give the unquantized one; model.precision=nf4 or int8 quantizes it where it is frozen.",
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"the checkpoint lacks weights of a causal language model: {', '.join(missing[:3])}",
            where=f"model.path={settings.path}",
            fix="Give a model with a language-model head, not a bare encoder or a classifier.",
        )
    where = f"model.path={settings.path}"
    check_whole_model(where, model)
    check_vocabulary(tokenizer, embedding_rows(model), where=where)
    check_causal(model, where=where)
    return model, tokenizer


def _one_or_list(ids: Sequence[int]) -> int | list[int] | None:
    return (ids[0] if len(ids) == 1 else list(ids)) if ids else None

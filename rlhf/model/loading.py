"""A causal language model of transformers from a folder or the hub, and messages when it cannot be loaded."""

import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rlhf.errors import UserError
from rlhf.hub import check_hub, local_model_folder
from rlhf.model.causality import check_causal
from rlhf.model.quantization import fix_quantized_layers, is_quantized, load_options
from rlhf.model.vocabulary import check_vocabulary
from rlhf.parallel.deepspeed.sharded import whole_shape
from rlhf.parallel.world import world
from rlhf.settings.groups import ModelSettings, Precision

_LONGEST_REASON = 600
"""Characters of what transformers says that a message keeps: it may list every model that it knows."""


def load_causal_model(
    path: str | Path,
    *,
    revision: str | None,
    settings: ModelSettings | None,
    device: torch.device | str,
) -> tuple[Any, Any]:
    """A model, frozen or not as transformers leaves it, and its tokenizer: see `Backbone.load`.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    quiet_transformers()
    precision: Precision = "fp32" if settings is None else settings.precision
    options = load_options(precision, device)
    common: dict[str, Any] = {"revision": revision} if revision else {}
    if settings is not None:
        options["attn_implementation"] = settings.attention
        common["trust_remote_code"] = settings.trust_remote_code
    check_model_path(path, revision=revision)
    with loading("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(path, **common)
    with loading("model", path, settings=settings, revision=revision), loading_weights(precision):
        model = AutoModelForCausalLM.from_pretrained(path, **options, **common)
    check_whole_model(path, model)
    check_vocabulary(tokenizer, embedding_rows(model), where=str(path))
    model.config.use_cache = True
    if is_quantized(model):
        fix_quantized_layers(model)
    else:
        nn.Module.to(model, device)
    check_causal(model, where=str(path))
    return model, tokenizer


def embedding_rows(model: Any) -> int:
    """Ids that can be looked up and predicted: rows of the embedding, and of the output head."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(whole_shape(embedding.weight)[0] for embedding in embeddings)


def check_whole_model(path: str | Path, model: Any) -> None:
    """Check that what transformers has loaded is a model, and not an adapter on another one.

    Raises:
        UserError: the folder or repository holds an adapter, which transformers then puts on its base.
    """
    if getattr(model, "peft_config", None):
        raise _is_adapter(str(path))


@contextlib.contextmanager
def loading_weights(precision: Precision) -> Iterator[None]:
    """Inside the block transformers loads a model sharded, under ZeRO-3: no rank ever holds all of it."""
    if world().zero != 3:
        yield
        return
    from rlhf.parallel.deepspeed.gather import sharded_load

    with sharded_load(precision):
        yield


@contextlib.contextmanager
def loading(
    part: Literal["model", "tokenizer"],
    path: str | Path,
    *,
    settings: ModelSettings | None = None,
    revision: str | None = None,
) -> Iterator[None]:
    """Turn what transformers raises into a message that keeps what it begins with.

    With the `settings` that a model is loaded with, it is found out whether their attention is the reason.

    Raises:
        UserError: loading failed.
    """
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        fix = "Give a folder with config.json, tokenizer and safetensors weights."
        if not Path(path).is_dir():
            fix = "Check the id, the network, and whether HF_HUB_OFFLINE is set, or give a local folder."
        if settings is not None and (other := _other_attention(path, settings, revision)) is not None:
            fix = f"Set model.attention={other}: the model cannot be made with {settings.attention} here."
        what = "the model" if part == "model" else "the model (its tokenizer)"
        reason = textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" …")
        raise UserError(f"cannot load {what}: {reason}", where=str(path), fix=fix) from error


def _other_attention(path: str | Path, settings: ModelSettings, revision: str | None) -> str | None:
    """The attention that a model can be made with, where it cannot with that of the settings; else None."""
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": settings.trust_remote_code}

    def can_be_made(attention: str) -> bool:
        try:
            config = AutoConfig.from_pretrained(path, **common)
            with torch.device("meta"):  # no weights
                AutoModelForCausalLM.from_config(
                    config, attn_implementation=attention, trust_remote_code=settings.trust_remote_code
                )
        except (OSError, ValueError, ImportError):
            return False
        return True

    if can_be_made(settings.attention):
        return None
    return next((other for other in ("sdpa", "eager") if can_be_made(other)), None)


def check_model_path(path: str | Path, *, revision: str | None = None) -> None:
    """Tell a missing local folder from a hub id, and a hub that answers from one that does not.

    Raises:
        UserError: `path` looks like a local folder and does not exist, or holds no model; no hub answers.
    """
    text = str(path)
    folder = local_model_folder(text, where=text)
    if folder is None:
        check_hub(text, kind="model", revision=revision, where=text)
    elif (folder / "adapter_config.json").is_file():
        raise _is_adapter(text)  # also next to a whole model: transformers would put it on that
    elif not (folder / "config.json").is_file():
        raise UserError(
            "the folder holds no config.json", where=text, fix="Give a Hugging Face model folder."
        )


def _is_adapter(where: str) -> UserError:
    return UserError(
        "it holds an adapter (adapter_config.json), not a model of its own",
        where=where,
        fix="Merge it into its base (PEFT's `merge_and_unload`), save that, and give its folder; "
        "a policy of ours is merged with `ppo.export_merged=true`.",
    )


def quiet_transformers() -> None:
    """No progress bars and no advice from transformers: our own commands say what is going on."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()

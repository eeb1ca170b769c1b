"""A causal language model of transformers from a folder or the hub, and messages when it cannot be loaded."""

import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rlhf.errors import UserError
from rlhf.hub import check_hub, local_model_folder
from rlhf.model.quantization import fix_quantized_layers, is_quantized, load_options
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
    with loading("model", path), loading_weights(precision):
        model = AutoModelForCausalLM.from_pretrained(path, **options, **common)
    model.config.use_cache = True
    if is_quantized(model):
        fix_quantized_layers(model)
    else:
        nn.Module.to(model, device)
    return model, tokenizer


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
def loading(part: Literal["model", "tokenizer"], path: str | Path) -> Iterator[None]:
    """Turn what transformers raises into a message that keeps what it begins with.

    Raises:
        UserError: loading failed.
    """
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        fix = "Give a folder with config.json, tokenizer and safetensors weights."
        if not Path(path).is_dir():
            fix = "Check the id, the network, and whether HF_HUB_OFFLINE is set, or give a local folder."
        what = "the model" if part == "model" else "the model (its tokenizer)"
        reason = textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" …")
        raise UserError(f"cannot load {what}: {reason}", where=str(path), fix=fix) from error


def check_model_path(path: str | Path, *, revision: str | None = None) -> None:
    """Tell a missing local folder from a hub id, and a hub that answers from one that does not.

    Raises:
        UserError: `path` looks like a local folder and does not exist, or holds no model; no hub answers.
    """
    text = str(path)
    folder = local_model_folder(text, where=text)
    if folder is None:
        check_hub(text, kind="model", revision=revision, where=text)
    elif not (folder / "config.json").is_file():
        raise UserError(
            "the folder holds no config.json", where=text, fix="Give a Hugging Face model folder."
        )


def quiet_transformers() -> None:
    """No progress bars and no advice from transformers: our own commands say what is going on."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()

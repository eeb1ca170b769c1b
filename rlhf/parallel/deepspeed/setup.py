"""DeepSpeed's settings, and how it begins: what it or accelerate would choose by itself is set here."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from rlhf import optional
from rlhf.errors import UserError
from rlhf.parallel.world import world
from rlhf.settings.groups import Precision

LARGEST_BUCKET = 500_000_000
"""Gradients that DeepSpeed collects before it reduces them, at most."""


def check_launch(stage: int, *, max_grad_norm: float | None, precision: Precision) -> None:
    """Refuse settings of the launcher that DeepSpeed would follow in silence, against the recipe.

    Raises:
        UserError: another clipping, accumulation or precision than the recipe's; a quantized base and ZeRO-3.
    """
    if stage not in (1, 2, 3):
        raise UserError(f"ZeRO stage {stage}", where="accelerate config", fix="Use 1, 2 or 3.")
    if stage == 3 and precision in ("int8", "nf4"):
        raise UserError(
            f"an {precision} base cannot be sharded over ranks: packed weights and scales belong together",
            where=f"model.precision={precision}, ZERO=3",
            fix="Use ZERO=2 (every rank holds the quantized base), or model.precision=bf16 with ZERO=3.",
        )
    launched_with = os.environ.get
    clipping = launched_with("ACCELERATE_GRADIENT_CLIPPING", "auto")
    for name, value, wanted in (
        ("gradient_clipping", clipping, ["auto", "none"]),
        (
            "gradient_accumulation_steps",
            launched_with("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto"),
            ["auto", "1"],
        ),
        ("mixed_precision", launched_with("ACCELERATE_MIXED_PRECISION", "no"), ["no"]),
        ("deepspeed_config_file", launched_with("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"), ["none"]),
    ):
        is_same_norm = name == "gradient_clipping" and _is_number(value, max_grad_norm)
        if value.lower() not in wanted and not is_same_norm:
            raise UserError(
                f"the launcher says `{name}: {value}`, and that is for the recipe to say",
                where="accelerate config",
                fix=f"Leave `{name}` out of it. The recipe has max_grad_norm, batch_size, micro_batch_* and "
                "model.precision; configs/accelerate/ of the repository has files that agree.",
            )


def _is_number(text: str, number: float | None) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return False


def start_deepspeed(device: torch.device) -> None:
    """Let accelerate and DeepSpeed use the process group that there is."""
    # accelerate refuses its own config's settings in addition to ours for DeepSpeed, which hold them.
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    warnings.filterwarnings(
        "ignore", message=r".*torch\.distributed\.\w+_tensor.* is deprecated", category=FutureWarning
    )
    warnings.filterwarnings("ignore", message="No device id is provided via")
    optional.load("deepspeed")
    with quiet():
        import deepspeed
        from accelerate import PartialState

        # On a CPU DeepSpeed would compile an operator for shared memory at its first start, which needs a
        # compiler, and a process that is killed meanwhile leaves a lock that all later ones wait for.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        PartialState(backend="gloo" if device.type == "cpu" else "nccl")


def deepspeed_settings(
    num_trained: int,
    *,
    micro_batch_rows: int = 1,
    accumulation: int = 1,
    max_grad_norm: float,
    **more: Any,
) -> dict[str, Any]:
    """DeepSpeed's settings: all that it, accelerate or a `Trainer` would choose by itself is set here.

    `num_trained` parameters are trained, about; `more` are settings of ZeRO.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": {
            "stage": world().zero,
            "offload_optimizer": {"device": _offload_device("OPTIMIZER")},
            "offload_param": {"device": _offload_device("PARAM")},
            "stage3_allgather_sequential": _one_by_one(),
            # Memory that it takes at once, however few gradients there are.
            "reduce_bucket_size": min(num_trained, LARGEST_BUCKET),
            **more,
        },
    }


def _offload_device(what: str) -> str:
    """Where the launcher wants the optimizer's state or the parameters: `cpu` or `none`."""
    return os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none")


def _one_by_one() -> bool:
    """Whether weights are gathered one after the other: over gloo.

    DeepSpeed 0.19 starts many gatherings together and waits for the last. NCCL has then done the others; gloo
    may not have, and layers would now and then run on weights that have not arrived.
    """
    return world().device.type == "cpu"


def loading_settings(precision: Precision) -> dict[str, Any]:
    """For transformers: models are made and loaded in parts, of the type that `precision` names."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": _offload_device("PARAM")},
            "stage3_allgather_sequential": _one_by_one(),
        },
        # Says what type the parts have; without it they would be fp32 whatever is loaded.
        "bf16": {"enabled": precision == "bf16"},
    }


def forget_settings() -> None:
    """From here on transformers loads models whole again: the merged copy of a policy, for one."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep DeepSpeed's and accelerate's own words to errors, and afterwards to warnings."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(logging.WARNING)

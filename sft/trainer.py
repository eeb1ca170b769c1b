"""The trainer of a recipe: TRL's, with what the recipe says."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from datasets import disable_progress_bars
from peft import LoraConfig
from torch import nn
from trl import SFTConfig

from rlhf.errors import UserError
from rlhf.model.adapters import LoraPlaces, adapted_modules
from rlhf.parallel.deepspeed.sharded import whole_shape
from rlhf.parallel.world import world
from rlhf.runs.checkpoints import CHECKPOINTS
from rlhf.settings.groups import LoraSettings
from rlhf.settings.recipe import Recipe
from sft.config import SFTSettings
from sft.data import Example, dataset
from sft.model import Start, training_precision
from sft.resumable import Trainer

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class _OneDevice(SFTConfig):
    """Arguments for one device in each process, however many there are: never torch's `DataParallel`."""

    @property
    def n_gpu(self) -> int:
        num: int = super().n_gpu
        return min(num, 1)


def build_trainer(
    recipe: Recipe,
    settings: SFTSettings,
    start: Start,
    examples: Sequence[Example],
    folder: Path,
) -> Trainer:
    """A trainer over `examples` on the device where the model is; checkpoints go into the stage folder."""
    disable_progress_bars()
    with warnings.catch_warnings(), _no_telemetry():
        # PEFT 0.21 asks transformers 5.23 under the old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return Trainer(
            folder=folder,
            keep_checkpoints=settings.keep_checkpoints,
            max_grad_norm=settings.max_grad_norm,
            computes_in_bf16=training_precision(recipe.model) == "bf16",
            model=start.model,
            args=_arguments(recipe, settings, start.model, folder=folder),
            train_dataset=dataset(examples),
            processing_class=start.tokenizer,
            peft_config=_lora(start.model, settings.lora) if settings.method == "lora" else None,
        )


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """Inside the block TRL reports nothing to Hugging Face, as with HF_HUB_DISABLE_TELEMETRY=1.

    The environment variable is read only once, when some module first imports huggingface_hub.
    """
    constants = huggingface_hub.constants
    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def rows_at_a_time(settings: SFTSettings) -> tuple[int, int]:
    """Rows of a micro-batch on every rank, and micro-batches of a step.

    Raises:
        UserError: the batch cannot be divided among the ranks.
    """
    size = world().size
    if settings.batch_size % size:
        raise UserError(
            f"{settings.batch_size} sequences cannot be divided among {size} processes",
            where="sft.batch_size",
            fix="Make it a multiple of the number of processes.",
        )
    accumulation = settings.accumulation_over(size)
    return settings.batch_size // (size * accumulation), accumulation


def _arguments(recipe: Recipe, settings: SFTSettings, model: Any, *, folder: Path) -> SFTConfig:
    names = {field.name for field in fields(SFTConfig)}
    checkpointing = (
        "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    )
    rows, accumulation = rows_at_a_time(settings)
    device: torch.device = model.device
    options: dict[str, Any] = {
        checkpointing: settings.gradient_checkpointing,
        "bf16": training_precision(recipe.model) == "bf16",
        "use_cpu": device.type == "cpu",
        # transformers does not clip: it would keep the norm to itself. `Trainer` does it at the same point.
        "max_grad_norm": 0.0,
    }
    if world().zero:
        # Only here: accelerate has DeepSpeed's wrapper only in a process that may import DeepSpeed.
        from rlhf.training.deepspeed.trainer import trainer_options

        options |= {"bf16": False, "max_grad_norm": settings.max_grad_norm}
        options |= trainer_options(
            _num_trained(model, settings),
            micro_batch_rows=rows,
            accumulation=accumulation,
            max_grad_norm=settings.max_grad_norm,
        )
    args = _OneDevice(
        output_dir=str(folder / CHECKPOINTS),
        seed=recipe.run.seed,
        data_seed=recipe.run.seed,
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=settings.warmup_fraction,
        weight_decay=settings.weight_decay,
        completion_only_loss=True,
        packing=settings.packing,
        packing_strategy="bfd",
        max_length=settings.length.max_tokens if settings.packing else None,
        # `StepCallback` does all three.
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the loss of every micro-batch
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        **options,
    )
    if (args.device.type, args.device.index or 0) != (device.type, device.index or 0):
        raise UserError(
            f"the SFT trainer uses {args.device}, not {device}",
            where="run.device",
            fix="Choose a GPU with CUDA_VISIBLE_DEVICES, and leave run.device=auto.",
        )
    return args


def _num_trained(model: nn.Module, settings: SFTSettings) -> int:
    """Parameters that will be trained; of adapters, before there are any."""
    if settings.method == "full":
        return sum(whole_shape(parameter).numel() for parameter in model.parameters())
    modules = adapted_modules(model, _on_all_layers(settings.lora), where="sft.lora")
    return settings.lora.rank * sum(sum(whole_shape(module.weight)) for module in modules)


def _lora(model: nn.Module, settings: LoraSettings) -> LoraConfig:
    """PEFT's configuration, on modules that exist.

    Raises:
        UserError: `target_modules` names a module that the model does not have.
    """
    places = LoraPlaces.of(model)
    return places.config(_on_all_layers(settings), where="sft.lora", task_type="CAUSAL_LM")


def _on_all_layers(settings: LoraSettings) -> LoraSettings:
    """`top_layers` is for bases that several roles share: here it says nothing."""
    return settings.model_copy(update={"top_layers": None})

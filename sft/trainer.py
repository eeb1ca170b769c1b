"""TRL's `SFTTrainer` as this stage uses it: ids and a mask go in, figures go to the tracker."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from peft import LoraConfig
from torch import nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from rlhf import preemption
from rlhf.errors import UserError
from rlhf.model.adapters import LoraPlaces, adapted_modules
from rlhf.parallel.deepspeed.sharded import whole_shape
from rlhf.parallel.world import world
from rlhf.runs.checkpoints import CHECKPOINTS
from rlhf.settings.groups import LoraSettings
from rlhf.settings.recipe import Recipe
from rlhf.training.deepspeed.trainer import trainer_options
from sft.config import SFTSettings
from sft.data import Example, dataset
from sft.model import Start, training_precision
from sft.resume import ResumableTrainer

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_LOGGED = {
    "loss": "sft/loss_nats_per_token",
    "mean_token_accuracy": "sft/token_accuracy",
    "entropy": "sft/entropy_nats_per_token",
    "grad_norm": "sft/gradient_norm",
    "learning_rate": "sft/learning_rate",
    "epoch": "sft/epochs",
    "num_tokens": "sft/tokens_seen",
}
"""What the trainer logs, and the key under which it is kept."""
_MEASURED_LOSS = "sft/heldout_loss_nats_per_token"


class Log(Protocol):
    """Where figures go: a `Tracker`."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...


class SeededOrder(Sampler[int]):
    """Every example once an epoch, in an order that (seed, epoch) alone decide.

    Within the examples of one optimizer step, which is a sum and has no order, they stand by length: a
    micro-batch then holds examples of like length and little padding. The last `num_dummies` rows are no
    examples: they come last, so that every process has equally many rows.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int, num_dummies: int = 0) -> None:
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.num_dummies, self.epoch = num_dummies, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        num_examples = len(self) - self.num_dummies
        order = np.random.default_rng([self.seed, self.epoch]).permutation(num_examples)
        order = np.concatenate([order, np.arange(num_examples, len(self))])
        for first in range(0, len(order), self.batch_size):
            step = order[first : first + self.batch_size]
            yield from step[np.argsort(-self.lengths[step], kind="stable")].tolist()


class Trainer(ResumableTrainer):
    """TRL's trainer with our order of examples, without the model cards and pings it sends on the side."""

    order: SeededOrder
    num_dummies = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of every training row: of every example, or of every packed row."""
        rows: Any = self.train_dataset
        return [len(ids) for ids in rows["input_ids"]]

    def fill_up(self) -> None:
        """Give every process equally many rows, by rows of one token that no loss is taken of.

        accelerate would draw examples twice.
        """
        args, rows = self.args, self.train_dataset
        assert isinstance(rows, Dataset)
        at_a_time = args.train_batch_size * args.world_size
        self.num_dummies = -len(rows) % at_a_time if args.world_size > 1 else 0
        if self.num_dummies:
            dummy = {"input_ids": [0], "labels": [-100], "seq_lengths": [1]}
            columns = {name: [dummy[name]] * self.num_dummies for name in rows.column_names}
            self.train_dataset = concatenate_datasets(
                [rows, Dataset.from_dict(columns, features=rows.features)]
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededOrder:
        del train_dataset
        args = self.args
        self.order = SeededOrder(
            self.lengths,
            batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            seed=args.seed,
            num_dummies=self.num_dummies,
        )
        return self.order

    def watch(self, watch: "Watch") -> None:
        """Let `watch` follow the training."""
        self.remove_callback(PrinterCallback)
        watch.trainer = self
        self.add_callback(watch)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def _send_telemetry(self) -> None:
        pass


class Watch(TrainerCallback):
    """Forwards the trainer's figures, moves the progress bar, and measures the held-out loss on the way.

    `evaluate` maps a model to metrics. A checkpoint is also written after the measurement that is the best so
    far, and when the process is preempted, which ends the training.
    """

    def __init__(
        self,
        log: Log,
        settings: SFTSettings,
        advance: Callable[[int], Any],
        evaluate: Callable[[Any], dict[str, float]],
    ) -> None:
        self.tracker, self.advance, self.evaluate = log, advance, evaluate
        self.every, self.saves = settings.eval_every_steps, bool(settings.checkpoint_every_steps)
        self.is_stopped = False
        self.trainer: Trainer
        self._last = (time.monotonic(), 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_window()
        self.advance(state.global_step)
        self._last = (time.monotonic(), float(self.trainer._total_train_tokens))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.order.epoch = int(state.epoch or 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.remember_window()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.skip_unless_finite()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        self.advance(1)
        if self.every and step % self.every == 0 and step < state.max_steps:
            metrics = self.evaluate(kwargs["model"])
            self.tracker.log(metrics, step=step)
            loss = metrics.get(_MEASURED_LOSS)
            if loss is not None and self.trainer.best.offer(step, -loss) and self.saves:
                control.should_save = True
        if world().any(preemption.requested()):
            control.should_save = control.should_training_stop = self.is_stopped = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in logs:
            return  # the summary at the end of training
        metrics = {ours: float(logs[theirs]) for theirs, ours in _LOGGED.items() if theirs in logs}
        metrics["sft/skipped_steps"] = float(self.trainer.guard.skipped_steps)
        self.tracker.log(metrics | self._speed(logs), step=state.global_step)

    def _speed(self, logs: Mapping[str, float]) -> dict[str, float]:
        now, tokens = time.monotonic(), float(logs.get("num_tokens", 0.0))
        (before, tokens_before), self._last = self._last, (now, tokens)
        return {"sft/tokens_per_second": (tokens - tokens_before) / max(now - before, 1e-9)}


def build_trainer(
    recipe: Recipe,
    settings: SFTSettings,
    start: Start,
    examples: Sequence[Example],
    folder: Path,
) -> Trainer:
    """A trainer over `examples` on the device where the model is; checkpoints lie in the stage folder."""
    disable_progress_bars()
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 under the old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        trainer = Trainer(
            model=start.model,
            args=_arguments(recipe, settings, start.model, folder=folder),
            train_dataset=dataset(examples),
            processing_class=start.tokenizer,
            peft_config=_lora(start.model, settings.lora) if settings.method == "lora" else None,
        )
    for parameter in trainer.named.values():
        parameter.data = parameter.data.float()  # under ZeRO-3 TRL makes adapters in the base's type
    trainer.keep_in(folder, keep=settings.keep_checkpoints)
    trainer.computes_in_bf16 = training_precision(recipe.model) == "bf16"
    trainer.fill_up()
    return trainer


def rows_at_a_time(settings: SFTSettings) -> tuple[int, int]:
    """Rows of a micro-batch on every rank, and micro-batches of a step.

    Raises:
        UserError: the batch cannot be cut over the ranks.
    """
    size = world().size
    if settings.batch_size % size:
        raise UserError(
            f"{settings.batch_size} sequences cannot be cut over {size} processes",
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
    }
    if world().zero:
        options |= {"bf16": False} | trainer_options(
            _num_trained(model, settings),
            micro_batch_rows=rows,
            accumulation=accumulation,
            max_grad_norm=settings.max_grad_norm,
        )
    args = SFTConfig(
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
        max_grad_norm=settings.max_grad_norm,
        completion_only_loss=True,
        packing=settings.packing,
        packing_strategy="bfd",
        max_length=settings.length.max_tokens if settings.packing else None,
        logging_steps=recipe.tracking.log_every_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.checkpoint_every_steps else "no",
        save_steps=settings.checkpoint_every_steps or 1,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        **options,
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process, one device: never torch's DataParallel
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

"""Settings of the SFT stage: the `sft` section of a recipe."""

from typing import Literal

from pydantic import model_validator

from rlhf.settings.groups import (
    LengthSettings,
    LoraSettings,
    SamplingSettings,
    Settings,
    SourceSettings,
    setting,
)


class SFTSettings(Settings):
    """Supervised fine-tuning on demonstrations; the loss is on completions only, their EOS included."""

    method: Literal["full", "lora", "none"] = "lora"
    """`full` trains every weight, `lora` an adapter that is then merged, `none` takes the model as it is."""
    demonstrations: list[SourceSettings] = []
    """Where the demonstrations come from; `none` needs them only to evaluate."""
    tokenizer_prompts: list[SourceSettings] = []
    """Prompts of later stages whose words a tokenizer from scratch should know; they are not trained on."""
    held_out_fraction: float = setting(0.1, ge=0, lt=1)
    """Share of the prompts kept for evaluation, by a hash of the prompt."""
    length: LengthSettings = LengthSettings()
    """What happens to demonstrations that do not fit."""
    packing: bool = False
    """Lay demonstrations end to end in rows of `length.max_tokens`; they do not see each other."""
    lora: LoraSettings = LoraSettings()
    """The adapter of method `lora`."""

    num_epochs: float = setting(3.0, gt=0)
    """Passes over the demonstrations."""
    batch_size: int = setting(32, ge=1)
    """Sequences (packed rows) in an optimizer step, on all devices together."""
    micro_batch_size: int = setting(16, semantic=False, ge=1)
    """Sequences that go through the model together, at most."""
    learning_rate: float = setting(2e-4, gt=0)
    """AdamW's highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_fraction: float = setting(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = setting(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = setting(1.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool = setting(False, semantic=False)
    """Recompute activations in the backward pass: less memory, about a third more time."""

    eval_every_steps: int = setting(0, semantic=False, ge=0)
    """Optimizer steps between two evaluations of the held-out loss; 0 evaluates before and after only."""
    checkpoint_every_steps: int = setting(200, semantic=False, ge=0)
    """Optimizer steps between two checkpoints; 0 writes none but after the last step, and when preempted."""
    keep_checkpoints: int = setting(2, semantic=False, ge=1)
    """Newest checkpoints that are kept, besides the one with the lowest held-out loss."""
    num_samples: int = setting(32, semantic=False, ge=0)
    """Held-out prompts that the finished model answers, for the sample table and the EOS rate."""
    sampling: SamplingSettings = SamplingSettings()
    """How those answers are drawn."""

    @property
    def accumulation(self) -> int:
        """Micro-batches in an optimizer step on one process."""
        return self.accumulation_over(1)

    def accumulation_over(self, num_processes: int) -> int:
        """The fewest micro-batches of one size in which every process does its part of a step."""
        own = self.batch_size // num_processes
        return next(
            num for num in range(1, own + 1) if own % num == 0 and own // num <= self.micro_batch_size
        )

    @model_validator(mode="after")
    def _rows_have_a_length(self) -> "SFTSettings":
        if self.packing and self.length.max_tokens is None:
            raise ValueError("packing needs `length.max_tokens`, the length of a packed row")
        return self

    @model_validator(mode="after")
    def _training_has_data(self) -> "SFTSettings":
        if self.method != "none" and not self.demonstrations:
            raise ValueError(f"method `{self.method}` needs `demonstrations`")
        return self


SECTION = SFTSettings

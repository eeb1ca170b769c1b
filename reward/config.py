"""Settings of the reward stage: the `reward` section of a recipe."""

from typing import Literal

from rlhf.settings.groups import (
    LengthSettings,
    LoraSettings,
    SamplingSettings,
    Settings,
    SourceSettings,
    setting,
)


class RewardSettings(Settings):
    """A reward model learned from rankings (2203.02155, section 3.5)."""

    rankings: list[SourceSettings] = setting(min_length=1)
    """Where the rankings come from."""
    held_out_fraction: float = setting(0.1, ge=0, lt=1)
    """Share of the prompts kept for evaluation, by a hash of the prompt."""
    length: LengthSettings = LengthSettings()
    """What happens to a group whose prompt and longest completion do not fit."""
    tie_margin: float | None = setting(None, ge=0)
    """Unset: equal ranks give no pair. Set: their scores are drawn together where further apart."""
    gold: str | None = setting(None, semantic=False, names="scorer")
    """A scorer that training never sees, `file.py:function` or `module:function`, to evaluate against."""

    lora: LoraSettings = LoraSettings()
    """The reward model's adapter."""
    num_epochs: int = setting(1, ge=1)
    """Passes over the rankings."""
    batch_size: int = setting(64, ge=1)
    """Groups (prompts with all their completions) in an optimizer step."""
    micro_batch_tokens: int = setting(8192, semantic=False, ge=1)
    """Padded tokens that go through the model together; at least one group does."""
    learning_rate: float = setting(3e-4, gt=0)
    """AdamW's peak learning rate of the adapter."""
    head_learning_rate: float = setting(1e-3, gt=0)
    """AdamW's peak learning rate of the scalar head."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What both learning rates do after the warm-up: go down to zero, or stay."""
    warmup_fraction: float = setting(0.05, ge=0, lt=1)
    """Share of the steps over which both learning rates rise from zero."""
    weight_decay: float = setting(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = setting(1.0, gt=0)
    """Gradients of adapter and head together are clipped to this norm."""
    gradient_checkpointing: bool = setting(False, semantic=False)
    """Recompute activations in the backward pass: less memory, about a third more time."""

    num_normalization_samples: int = setting(256, ge=2)
    """Samples of the SFT policy whose raw scores set mean and standard deviation of the normalization."""
    sampling: SamplingSettings = SamplingSettings()
    """How those samples are drawn; best as in `ppo.sampling`."""

    eval_every_steps: int = setting(0, semantic=False, ge=0)
    """Steps between two evaluations on the held-out prompts during training; 0 evaluates at the end only."""
    checkpoint_every_steps: int = setting(100, semantic=False, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: int = setting(2, semantic=False, ge=1)
    """Newest checkpoints that are kept, and the one with the lowest loss on the held-out prompts."""
    num_table_rows: int = setting(8, semantic=False, ge=0)
    """Held-out prompts in the table that shows completions, labels and scores."""


SECTION = RewardSettings

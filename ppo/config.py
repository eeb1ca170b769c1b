"""Settings of the PPO stage: the `ppo` section of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.settings.groups import (
    LengthSettings,
    LoraSettings,
    SamplingSettings,
    Settings,
    SourceSettings,
    setting,
)


class KLSettings(Settings):
    """The penalty that keeps the policy near the reference: −coefficient · k1 on every token."""

    coefficient: float = setting(0.05, ge=0)
    """β, the penalty per nat of KL(policy ‖ reference); where it starts if it adapts."""
    target: float | None = setting(None, gt=0)
    """KL in nats per response that β is steered to; unset keeps β fixed (1909.08593, section 2.2)."""
    horizon: int = setting(10_000, ge=1)
    """Responses over which an adaptive β reacts."""


class EvaluationSettings(Settings):
    """Evaluation on held-out prompts."""

    num_prompts: int = setting(128, ge=1)
    """Held-out prompts used at most."""
    every_iterations: int = setting(10, ge=0)
    """Iterations between two evaluations during training; 0 evaluates before and after only."""
    gold: str | None = setting(None, semantic=False, names="scorer")
    """A scorer that training never sees, `file.py:function` or `module:function`."""
    gold_best: float | None = None
    """The best possible gold score, to report the share of the gap that was closed."""
    best_of: list[Annotated[int, Field(ge=1)]] = [4, 16]
    """Best-of-n baselines: n samples of the reference, the best by the same reward."""
    num_table_rows: int = setting(8, ge=0)
    """Rows of the table that shows responses before and after side by side."""


class PPOSettings(Settings):
    """Proximal policy optimization (1707.06347) with the details of 2403.17031."""

    prompts: list[SourceSettings] = setting(min_length=1)
    """Where the prompts come from."""
    held_out_fraction: float = setting(0.1, gt=0, lt=1)
    """Share of the prompts kept for evaluation, by a hash of the prompt."""
    length: LengthSettings = LengthSettings()
    """What happens to prompts that leave no room for a response."""
    sampling: SamplingSettings = SamplingSettings()
    """How responses are drawn."""

    reward: str = setting("adapter", semantic=False, names="scorer")
    """`adapter`: the reward stage's model; or a scorer, `file.py:function` or `module:function`."""
    reward_clip: float | None = setting(None, gt=0)
    """Normalized scores are clipped to ± this; unset leaves them."""
    missing_eos_penalty: float = setting(1.0, ge=0)
    """Taken from the score of a response that did not end."""
    kl: KLSettings = KLSettings()
    """The KL penalty."""

    lora: LoraSettings = LoraSettings()
    """The policy's adapter."""
    value: Literal["separate", "joint"] = "separate"
    """`separate`: an own adapter that starts as the reward model; `joint`: a head on the policy's trunk."""
    gradient_checkpointing: bool = setting(False, semantic=False)
    """Recompute activations in the backward pass: less memory, about a third more time."""

    num_iterations: int = setting(100, ge=1)
    """Rounds of sampling and updating."""
    rollouts_per_iteration: int = setting(64, ge=1)
    """Responses sampled in an iteration."""
    samples_per_prompt: int = setting(1, ge=1)
    """Responses to each prompt of an iteration; must divide `rollouts_per_iteration`."""
    num_epochs: int = setting(4, ge=1)
    """Passes over an iteration's rollouts."""
    num_minibatches: int = setting(4, ge=1)
    """Optimizer steps in a pass."""
    micro_batch_tokens: int = setting(8192, semantic=False, ge=1)
    """Padded tokens that go through the model together."""
    policy_learning_rate: float = setting(3e-4, gt=0)
    """AdamW's learning rate of the policy's adapter."""
    value_learning_rate: float = setting(3e-4, gt=0)
    """AdamW's learning rate of the value adapter and head."""
    schedule: Literal["linear", "constant"] = "linear"
    """`linear` decays both learning rates to zero over the run."""
    max_grad_norm: float = setting(1.0, gt=0)
    """Gradients of policy and value together are clipped to this norm."""
    clip_range: float = setting(0.2, gt=0)
    """The probability ratio is clipped to 1 ± this."""
    value_clip_range: float = setting(0.2, gt=0)
    """A new value is clipped to the old one ± this."""
    value_coefficient: float = setting(0.1, ge=0)
    """Weight of the value loss."""
    gamma: float = setting(1.0, gt=0, le=1)
    """Discount of a token's reward."""
    gae_lambda: float = setting(0.95, ge=0, le=1)
    """λ of generalized advantage estimation."""
    value_warmup_iterations: int = setting(0, ge=0)
    """First iterations that train the value alone."""
    max_approx_kl: float | None = setting(None, gt=0)
    """Once the policy is this far from its rollouts (nats per token), the iteration ends early."""

    evaluation: EvaluationSettings = EvaluationSettings()
    """Evaluation on held-out prompts."""
    checkpoint_every_iterations: int = setting(10, semantic=False, ge=1)
    """Iterations between two checkpoints."""
    keep_checkpoints: int = setting(2, semantic=False, ge=1)
    """Newest checkpoints that are kept, and the best by the held-out gold score (without one: reward)."""
    publish: Literal["last", "best"] = "last"
    """Which policy is published: that of the last iteration, or the best one that was evaluated."""
    sample_table_every: int = setting(10, semantic=False, ge=0)
    """Iterations between two tables of rollouts; 0 writes none."""
    export_merged: bool = setting(False, semantic=False)
    """Also write base + policy merged into one plain model, `ppo/merged`.

    This is a step of its own after the policy is published: if it fails, the same command repeats it alone.
    """

    @model_validator(mode="after")
    def _sizes_fit(self) -> "PPOSettings":
        if self.rollouts_per_iteration % self.samples_per_prompt:
            raise ValueError(
                f"samples_per_prompt ({self.samples_per_prompt}) must divide "
                f"rollouts_per_iteration ({self.rollouts_per_iteration})"
            )
        if self.num_minibatches > self.rollouts_per_iteration:
            raise ValueError(
                f"num_minibatches ({self.num_minibatches}) exceeds "
                f"rollouts_per_iteration ({self.rollouts_per_iteration})"
            )
        if self.value_warmup_iterations >= self.num_iterations:
            raise ValueError(
                f"value_warmup_iterations ({self.value_warmup_iterations}) leaves none of "
                f"num_iterations ({self.num_iterations}) to train the policy"
            )
        return self


SECTION = PPOSettings

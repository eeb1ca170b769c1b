"""Our settings in the words of the peers, and what still differs.

TRL 1.12.0's PPOTrainer steps its optimizer where accelerate says that gradients have been accumulated: once
an epoch whatever its number of minibatches, and at every micro-batch of the last batch. With no accumulation
at all (`gradient_accumulation_steps=1`, a device batch as large as the iteration) every minibatch is a step:
its loop cuts the batch into `num_mini_batches` and takes epochs × minibatches steps an iteration, as ours.
"""

from typing import Any

from torch import nn

from benchmarks.workloads import Layers, adapted_layers
from ppo.config import PPOSettings
from reward.config import RewardSettings
from rlhf.errors import UserError
from rlhf.settings.groups import LoraSettings

PPO_DIFFERENCES = (
    "Models: the peer keeps a full copy for the value and one for the (merged) reward beside the "
    "policy's, its reference is the policy with the adapter off; ours keeps one base for all four.",
    "Old log-probabilities: both take those of cached decoding; ours compares them with a training forward "
    "on eight rollouts of an iteration first.",
    "Decoding: the peer uses transformers' generate, keeps the scores of every position, and goes on "
    "with all rows until the last has ended.",
    "Training: the peer's minibatches are as wide as the iteration's longest response, its heads see every "
    "position, and its layers are transformers' and PEFT's; ours computes no padding, its heads and the last "
    "layer's feed-forward see what predicts response tokens, and its layers are rlhf/model/layers/llama.py.",
    "Text: ours decodes every response for scorers that may want it; the peer does not.",
    "Gradient norm: ours clips it, at 1; the peer never does.",
    "Score: the peer puts it on the token after the EOS, where there is one, and its value loss covers "
    "that token too; ours on the EOS.",
    "Masks: the peer derives them from the pad token; ours carries them.",
    "Optimizer: AdamW with eps 1e-5 and no weight decay in both; the peer's is torch's fused one, its "
    "default.",
    "Prompts: the same set, in each racer's own random order.",
)
"""What still differs between the racers in PPO, for the report."""

FIXED_LENGTH_DIFFERENCES = (
    "Fixed length: the base that both load gives EOS and padding probability 1e-13, and the peer gets "
    "no stop token; nothing is suppressed while sampling.",
)
"""What differs besides where no response may end."""

LEARNING_DIFFERENCES = (
    "Recipe: for both with a fixed KL penalty of 0.1 and without value warm-up, as the peer cannot.",
    "Prompts: the recipe's training prompts without the seed's held-out ones, for both.",
    "Missing EOS: the same penalty; the peer looks for the tokenizer's EOS, ours for any EOS of the model.",
    "Padding: the peer takes the base's pad token, `<unk>` here; should the policy ever draw it, the peer "
    "reads the rest of that response as padding.",
)
"""What differs besides in the learning race."""

REWARD_DIFFERENCES = (
    "Data: the peer trains on pairs, two sequences each; ours scores every completion of a group once.",
    "Steps: ours takes one on 16 groups, the peer on as many pairs as 16 groups have, shuffled over all "
    "groups; so both take the same number of steps over the same comparisons.",
    "Batches: the peer's device batch is the largest divisor of a step's pairs that fits into our "
    "budget of padded tokens, without regard to length (its default); ours puts like lengths together.",
    "Score head: drawn from N(0, 1/(H+1)) in ours, by transformers in the peer.",
    "Optimizer: AdamW without weight decay in both; the peer's is torch's fused one, its default.",
)
"""What still differs between the racers in reward training, for the report."""


_QUIET: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
"""What no race measures is off in the peer, as it is in ours."""


def peer_arguments(settings: PPOSettings, *, seed: int, device: str, stops_at_eos: bool) -> dict[str, Any]:
    """Keyword arguments of the peer's PPOConfig.

    Raises:
        UserError: the peer cannot do what the settings ask for.
    """
    _check(settings)
    return {
        "seed": seed,
        "use_cpu": device == "cpu",
        **_QUIET,
        "num_sample_generations": 0,
        "total_episodes": settings.num_iterations * settings.rollouts_per_iteration,
        "per_device_train_batch_size": settings.rollouts_per_iteration,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": settings.num_minibatches,
        "num_ppo_epochs": settings.num_epochs,
        "local_rollout_forward_batch_size": settings.rollouts_per_iteration,
        "response_length": settings.sampling.max_response_tokens,
        "temperature": settings.sampling.temperature,
        "stop_token": "eos" if stops_at_eos else None,
        "missing_eos_penalty": settings.missing_eos_penalty or None,
        "learning_rate": settings.policy_learning_rate,
        "lr_scheduler_type": settings.schedule,
        "adam_epsilon": 1e-5,
        "weight_decay": 0.0,
        "kl_coef": settings.kl.coefficient,
        "kl_estimator": "k1",
        "cliprange": settings.clip_range,
        "cliprange_value": settings.value_clip_range,
        "vf_coef": settings.value_coefficient,
        "gamma": settings.gamma,
        "lam": settings.gae_lambda,
        "whiten_rewards": False,
    }


def peer_lora(lora: LoraSettings, linear_names: list[str], layers: Layers, num_layers: int) -> dict[str, Any]:
    """Keyword arguments of PEFT's LoraConfig for the adapter that ours is."""
    targets = linear_names if lora.target_modules == "all-linear" else lora.target_modules
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "layers_to_transform": adapted_layers(layers, num_layers),
    }


def linear_names(model: nn.Module, head: nn.Module) -> list[str]:
    """Last name of every linear layer but the head, as our `all-linear` means it."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
    )


def peer_reward_arguments(settings: RewardSettings, *, pairs_per_step: int, longest: int) -> dict[str, Any]:
    """Keyword arguments of the peer's RewardConfig; `longest` is of a sequence, in tokens."""
    device_batch, accumulation = reward_batching(
        pairs_per_step=pairs_per_step, longest=longest, budget_tokens=settings.micro_batch_tokens
    )
    return {
        **_QUIET,
        "max_length": None,
        "per_device_train_batch_size": device_batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": settings.num_epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
    }


def reward_batching(*, pairs_per_step: int, longest: int, budget_tokens: int) -> tuple[int, int]:
    """Pairs in a device batch of the peer, and batches accumulated to a step.

    The largest batch that divides the step and fits into as many padded tokens as our micro-batches may have.
    """
    room = max(1, budget_tokens // (2 * longest))
    batch = max(size for size in range(1, pairs_per_step + 1) if pairs_per_step % size == 0 and size <= room)
    return batch, pairs_per_step // batch


def _check(settings: PPOSettings) -> None:
    wrong = {
        "ppo.value_learning_rate": settings.value_learning_rate != settings.policy_learning_rate,
        "ppo.rollouts_per_iteration": settings.rollouts_per_iteration % settings.num_minibatches != 0,
        "ppo.samples_per_prompt": settings.samples_per_prompt != 1,
        "ppo.kl.target": settings.kl.target is not None,
        "ppo.value_warmup_iterations": settings.value_warmup_iterations != 0,
        "ppo.max_approx_kl": settings.max_approx_kl is not None,
        "ppo.reward_clip": settings.reward_clip is not None,
        "ppo.reward": settings.reward != "adapter",
        "ppo.value": settings.value != "separate",
        "ppo.sampling.stop": bool(settings.sampling.stop),
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            raise UserError("the peer has no such setting", where=key, fix="Leave it at its default.")

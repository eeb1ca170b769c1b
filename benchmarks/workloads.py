"""What the racers do: shapes of models, PPO and reward workloads, and which layers carry adapters.

Nothing here loads a library: a workload is a set of numbers.
"""

from collections.abc import Sequence
from typing import Literal

from rlhf.runs.manifest import JsonFile

Layers = Literal["all layers", "top half"]
"""Where all adapters sit: in every layer, or in the upper half of them."""


class Shape(JsonFile):
    """A Llama model with random weights."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int = 0
    """Heads of keys and values; 0: as many as heads."""
    intermediate_size: int
    vocab_size: int = 2048
    max_length: int = 256


class PPOWorkload(JsonFile):
    """PPO on a random model whose responses have the wanted lengths."""

    name: str
    prompt_tokens: int
    max_response_tokens: int
    eos_hazard: float
    """Probability of EOS at every position; 0: EOS cannot be drawn and every response has full length."""
    rollouts: int = 64
    num_epochs: int = 4
    num_minibatches: int = 4
    micro_batch_tokens: int = 8192
    num_prompts: int = 320
    lora_rank: int = 16
    lora_alpha: float = 32.0
    learning_rate: float = 1e-5
    """Small: the lengths of responses must not drift while time is taken, and no cost depends on it."""


class RewardWorkload(JsonFile):
    """A reward model trained on complete rankings of `num_completions` completions a prompt."""

    name: str
    num_completions: int
    skewed: bool
    """Lengths of completions: log-normal around `median_tokens`, or all of them `median_tokens`."""
    prompt_tokens: int = 16
    median_tokens: int = 32
    sigma: float = 0.9
    """Of the logarithm of a skewed length; lengths are cut to `min_tokens` and `max_tokens`."""
    min_tokens: int = 4
    max_tokens: int = 128
    num_groups: int = 256
    num_held_out: int = 200
    batch_groups: int = 16
    num_epochs: int = 2
    micro_batch_tokens: int = 8192
    lora_rank: int = 16
    lora_alpha: float = 32.0
    learning_rate: float = 2e-3

    @property
    def pairs_per_group(self) -> int:
        return self.num_completions * (self.num_completions - 1) // 2

    @property
    def longest_sequence(self) -> int:
        """Prompt, longest completion and EOS."""
        return self.prompt_tokens + (self.max_tokens if self.skewed else self.median_tokens) + 1


WHAT_BOTH_CAN = (
    "ppo.kl.target=null",
    "ppo.kl.coefficient=0.1",
    "ppo.value_warmup_iterations=0",
)
"""Settings of the learning race for both racers: the peer's penalty is fixed, and it has no value warm-up."""
SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="toy", hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, vocab_size=300),
        Shape(name="1.3M", hidden_size=128, num_layers=4, num_heads=4, intermediate_size=384),
        Shape(name="7M", hidden_size=256, num_layers=8, num_heads=8, intermediate_size=640),
        Shape(
            name="58M", hidden_size=512, num_layers=8, num_heads=8, intermediate_size=1376, vocab_size=32_000
        ),
    )
}
SPEED_SHAPES = ("1.3M", "7M")
MEMORY_SHAPE = "58M"

PPO_WORKLOADS = {
    "ppo-fixed": PPOWorkload(name="ppo-fixed", prompt_tokens=24, max_response_tokens=32, eos_hazard=0.0),
    # A hazard of 0.037 cut at 64 has mean (1 − 0.963⁶⁴) / 0.037 = 24.6 tokens.
    "ppo-real": PPOWorkload(name="ppo-real", prompt_tokens=12, max_response_tokens=64, eos_hazard=0.037),
    # Longer, for logits that weigh; one epoch: a second one reaches the same peak again.
    "ppo-memory": PPOWorkload(
        name="ppo-memory", prompt_tokens=64, max_response_tokens=64, eos_hazard=0.0, num_epochs=1
    ),
}
REWARD_WORKLOADS = {
    f"reward-{kind}-{num}": RewardWorkload(
        name=f"reward-{kind}-{num}",
        num_completions=num,
        skewed=kind == "skewed",
        median_tokens=16 if kind == "skewed" else 32,
    )
    for kind in ("equal", "skewed")
    for num in (2, 4, 9)
}


def adapted_layers(layers: Layers, num_layers: int) -> list[int] | None:
    """Indices of the layers that carry adapters; None means all of them."""
    return None if layers == "all layers" else list(range(num_layers - num_layers // 2, num_layers))


def lora_values(
    workload: PPOWorkload | RewardWorkload, layers: Layers, num_layers: int
) -> dict[str, int | float | None]:
    """The `lora` section of our recipe for a workload on a model of `num_layers`."""
    adapted = adapted_layers(layers, num_layers)
    return {
        "rank": workload.lora_rank,
        "alpha": workload.lora_alpha,
        "top_layers": len(adapted) if adapted else None,
    }


def racer_pairs(all_layers: Sequence[Layers]) -> list[tuple[str, str]]:
    """Which of our racers is compared with which peer: of the same layers, then with all layers."""
    same = [(f"ours, {layers}", f"peer, {layers}") for layers in all_layers]
    across = [
        (f"ours, {layers}", "peer, all layers")
        for layers in all_layers
        if layers != "all layers" and "all layers" in all_layers
    ]
    return same + across

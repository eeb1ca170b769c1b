"""What each precision of the base costs and what it keeps, and why adapters are kept in fp32.

    python -m benchmarks.precision MODEL

MODEL is the folder of a causal language model. Prints the two tables of docs/precision.md.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.base_model import base_bytes, perturb
from ppo.passes import response_logprobs
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.layers.router import replace_forward
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import Rollouts, from_lists
from rlhf.settings.groups import LoraSettings, ModelSettings, Precision, SamplingSettings

# Shapes: B rollouts, T response tokens.

OPENINGS = (
    "Once upon a time, there was a little girl",
    "One day, a boy named Tim went to the park",
    "The big dog",
    "Lily had a red ball. She",
    "It was raining, and the cat",
    "Mom said",
    "In a small house near the sea lived an old man who",
    "Ben and Sam are friends. They like to",
)
NUM_SAMPLES = 4
MAX_TOKENS = 48
LORA = LoraSettings(rank=8, alpha=16.0)
VARIANTS: tuple[tuple[Precision, str], ...] = (
    ("fp32", ""),
    ("bf16", ""),
    ("int8", ""),
    ("int8", "inputs in 8 bits too"),
    ("nf4", ""),
    ("nf4", "computed in bf16"),
)


def load(path: str, precision: Precision, variant: str = "") -> Backbone:
    """A backbone with an adapter `policy` that has an effect."""
    backbone = Backbone.load(path, settings=ModelSettings(path=path, precision=precision))
    if variant == "inputs in 8 bits too":  # bitsandbytes' own forward pass
        for layer in backbone.model.modules():
            if type(layer).__name__ == "Linear8bitLt":
                replace_forward(layer, functools.partial(type(layer).forward, layer))
    elif variant == "computed in bf16":
        for parameter in backbone.model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
        for layer in backbone.model.modules():
            if type(layer).__name__ == "Linear4bit":
                layer.compute_dtype = torch.bfloat16
    backbone.add_adapter("policy", LORA, seed=1)
    perturb(backbone, "policy", torch.Generator().manual_seed(2))
    return backbone


def draw(backbone: Backbone) -> Rollouts:
    """Samples of the policy."""
    prompts = [backbone.tokenizer(text)["input_ids"] for text in OPENINGS for _ in range(NUM_SAMPLES)]
    keys = [(0, row // NUM_SAMPLES, row % NUM_SAMPLES) for row in range(len(prompts))]
    settings = SamplingSettings(max_response_tokens=MAX_TOKENS)
    return sample(backbone, prompts, role="policy", settings=settings, keys=keys, seed=1)


@torch.no_grad()
def score(backbone: Backbone, rollouts: Rollouts, role: str, *, rows: int) -> Tensor:
    """Log-probabilities (B, T) by the training forward pass, `rows` rollouts at a time."""
    logprobs_BT = torch.zeros(rollouts.response_mask_BT.shape)
    for start in range(0, len(rollouts), rows):
        batch = rollouts.batch(range(start, min(start + rows, len(rollouts))))
        batch.put(response_logprobs(backbone, batch, role=role, temperature=1.0), logprobs_BT)
    return logprobs_BT


def bases(path: str) -> None:
    """Print the table of the base's precisions."""
    print("| base | MiB | Δ to fp32, mean | sampler's gap, mean / max | batch mates, max |")
    print("|---|---|---|---|---|")
    plain = load(path, "fp32")
    common = draw(plain)
    exact_BT = score(plain, common, REFERENCE, rows=len(common))
    for precision, variant in VARIANTS:
        backbone = load(path, precision, variant)
        shift_N = (score(backbone, common, REFERENCE, rows=len(common)) - exact_BT)[common.response_mask_BT]
        drawn = draw(backbone)
        whole_BT = score(backbone, drawn, "policy", rows=len(drawn))
        gap_N = (drawn.sampled_logprobs_BT - whole_BT)[drawn.response_mask_BT].abs()
        mates = (score(backbone, drawn, "policy", rows=1) - whole_BT).abs().max()
        name = f"{precision}, {variant}" if variant else precision
        print(
            f"| {name} | {base_bytes(backbone) / 2**20:.2f} | {float(shift_N.abs().mean()):.1e} "
            f"| {float(gap_N.mean()):.1e} / {float(gap_N.max()):.1e} | {float(mates):.1e} |"
        )


def fit(
    backbone: Backbone, dtype: torch.dtype, *, learning_rate: float, num_steps: int
) -> tuple[float, float]:
    """Fit the openings' own words; returns the share of weights that moved and the fall of the loss, nats."""
    ids = [backbone.tokenizer(text)["input_ids"] for text in OPENINGS]
    batch = from_lists([row[:1] for row in ids], [row[1:] for row in ids], backbone).batch()
    parameters = backbone.set_trainable(["policy"])
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    losses: list[float] = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = -response_logprobs(backbone, batch, role="policy", temperature=1.0)[0].mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    moved = sum(int((now != old).sum()) for now, old in zip(parameters, before, strict=True))
    return moved / sum(parameter.numel() for parameter in parameters), losses[0] - losses[-1]


def adapters(path: str, *, learning_rate: float = 1e-5, num_steps: int = 40) -> None:
    """Print the table of the adapters' own precision."""
    print(f"{num_steps} steps of AdamW at a learning rate of {learning_rate:g}\n")
    print("| base | adapters | weights that moved | loss, nats per token |")
    print("|---|---|---|---|")
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "nf4")
    for precision in precisions:
        for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            backbone = load(path, precision)
            moved, fall = fit(backbone, dtype, learning_rate=learning_rate, num_steps=num_steps)
            print(f"| {precision} | {name} | {100 * moved:.0f} % | {-fall:+.4f} |")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", metavar="MODEL", help="folder of a causal language model")
    parser.add_argument("--only", choices=["bases", "adapters"], help="one of the two tables")
    arguments = parser.parse_args(argv)
    for name, table in (("bases", bases), ("adapters", adapters)):
        if arguments.only in (None, name):
            table(arguments.model)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

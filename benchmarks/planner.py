"""How near the memory planner comes to what one PPO iteration really takes.

    python -m benchmarks.planner [NAME ...] [--output FILE]

Three shapes stress weights, logits and activations in turn. Each is planned from its config alone, and then
run in a process of its own: a model of that shape with random weights, the PPO stage's own classes, and one
iteration of sampling, scoring and updating in which every response has the greatest length.

Measured is the peak increment: on the CPU the highest resident memory (VmHWM, set back before the model is
made) less what importing had left resident; on CUDA the allocator's highest sum.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from benchmarks.machine import describe_code, describe_machine
from benchmarks.memory import PeakMemory
from rlhf.commands.process import run_command
from rlhf.errors import UserError
from rlhf.settings.recipe import Recipe, load_recipe
from rlhf.settings.yaml_files import write_yaml

SHAPES: dict[str, dict[str, Any]] = {
    "weights": {
        "model": {
            "hidden_size": 1536,
            "intermediate_size": 4096,
            "num_hidden_layers": 16,
            "vocab_size": 32000,
        },
        "prompt_tokens": 16,
        "ppo": {
            "sampling": {"max_response_tokens": 8, "batch_size": 8},
            "rollouts_per_iteration": 8,
            "num_minibatches": 2,
        },
    },
    "logits": {
        "model": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 151936},
        "prompt_tokens": 16,
        "ppo": {
            "sampling": {"max_response_tokens": 4, "batch_size": 896},
            "rollouts_per_iteration": 896,
            "num_minibatches": 2,
        },
    },
    "activations": {
        "model": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "vocab_size": 1024},
        "prompt_tokens": 120,
        "ppo": {
            "sampling": {"max_response_tokens": 8, "batch_size": 96},
            "rollouts_per_iteration": 384,
            "num_minibatches": 1,
            "micro_batch_tokens": 49152,
        },
    },
    "toy": {
        "model": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 1024},
        "prompt_tokens": 8,
        "ppo": {"rollouts_per_iteration": 8, "sampling": {"max_response_tokens": 4}},
    },
}
"""Model, prompts and settings of each shape; what a shape leaves out are the settings' defaults."""
CHECKED = ("weights", "logits", "activations")
_GIB = 2**30
_PACKAGES = ("torch", "transformers", "peft")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(CHECKED)} [all]")
    parser.add_argument("--output", type=Path, help="where the numbers go, as JSON")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in CHECKED:
            raise UserError(f"no shape `{name}`", where="NAME", fix=f"There are {', '.join(CHECKED)}.")
    if arguments.measure:
        print(json.dumps(measured(arguments.measure, arguments.device)))
        return 0
    rows = [compared(name, arguments.device) for name in arguments.names or CHECKED]
    report = {"machine": machine(arguments.device), "rows": rows}
    for row in rows:
        print(
            f"{row['shape']:<12} planned {row['planned_bytes'] / _GIB:6.3f} GiB ({row['phase']})  "
            f"measured {row['measured_bytes'] / _GIB:6.3f} GiB  {row['error']:+.1%}  {row['seconds']:.0f} s"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def compared(name: str, device: str) -> dict[str, Any]:
    """The plan of a shape next to what its iteration took, in a process of its own."""
    from plan.memory import Devices
    from plan.model import Sketch
    from plan.stages import Request, plan_ppo

    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(name, Path(folder))
        on_cuda = device == "cuda"
        sketch = Sketch.of(recipe.model, on_cuda=on_cuda)
        plan = plan_ppo(Request(recipe, sketch, Devices(on_cuda=on_cuda)))
    iteration = max(
        (phase for phase in plan.phases if phase.name != "measuring"), key=lambda phase: phase.total
    )
    command = [sys.executable, "-m", "benchmarks.planner", "--measure", name, "--device", device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return {
        "shape": name,
        "parameters": sketch.num_parameters,
        "phase": iteration.name,
        "planned_bytes": iteration.total,
        "planned_rows": {row: size for row, size in iteration.bytes.items() if size},
        "planned_phases": {phase.name: phase.total for phase in plan.phases},
        **result,
        "error": iteration.total / result["measured_bytes"] - 1,
    }


def measured(name: str, device: str) -> dict[str, Any]:
    """Run one iteration of a shape; its peak increment in bytes, in all and up to the end of each part.

    An iteration of a toy goes first: what is imported or set up at first use is no part of the increment.
    """
    run_iteration("toy", device)
    peak = PeakMemory(device)
    started = time.perf_counter()
    until = run_iteration(name, device, peak)
    seconds = time.perf_counter() - started
    return {"measured_bytes": increment(peak), "measured_until": until, "seconds": seconds}


def run_iteration(name: str, device: str, peak: PeakMemory | None = None) -> dict[str, int]:
    """Sample, score and train once; the peak increments after each."""
    import torch

    from ppo.config import PPOSettings
    from ppo.experience import compute_advantages
    from ppo.models import POLICY, build_roles
    from ppo.prompts import PromptSet, Requests
    from ppo.rollout import RolloutScorer, Sampler
    from ppo.update import Updater
    from rlhf.model.backbone import Backbone

    until: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(name, Path(folder))
        network = _network(Path(folder)).to(device)
    settings = cast(PPOSettings, recipe.section("ppo"))
    backbone = Backbone(network, _tokenizer(network.config.vocab_size), "")
    reward = build_roles(backbone, settings, reward_folder=None, base_sha256="", seed=0)
    updater = Updater(backbone, settings, seed=0)
    num = settings.rollouts_per_iteration
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 1000, (num, SHAPES[name]["prompt_tokens"]), generator=generator).tolist()
    backbone.eos_ids = (network.config.vocab_size,)  # no token: every response has the greatest length
    requests = Requests(PromptSet(ids, [""] * num), [(0, row, 0) for row in range(num)])
    if peak:
        until["made"] = increment(peak)
    sampled = Sampler(backbone, settings, seed=0).sample(requests, role=POLICY)
    scored = RolloutScorer(backbone, reward, settings).score(sampled, role=POLICY, for_training=True)
    if peak:
        until["sampled and scored"] = increment(peak)
    experience = compute_advantages(scored, settings, kl_coefficient=0.05)
    updater.update(experience, iteration=0)
    if peak:
        until["trained"] = increment(peak)
    assert int(sampled.rollouts.response_lengths_B.min()) == settings.sampling.max_response_tokens
    return until


def no_reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Scores that need no model: the reward adapter would only add a third adapter's weights."""
    return [float(len(response) % 7) for _, response in zip(prompts, responses, strict=True)]


def recipe_of(name: str, folder: Path) -> Recipe:
    """The recipe of a shape and its model's config, written into `folder`."""
    from transformers import LlamaConfig

    shape = SHAPES[name]
    heads = max(1, shape["model"]["hidden_size"] // 64)
    config = LlamaConfig(
        **shape["model"], num_attention_heads=heads, max_position_embeddings=512, tie_word_embeddings=True
    )
    config.save_pretrained(folder)
    response = shape["ppo"]["sampling"]["max_response_tokens"]
    ppo = {
        "prompts": [{"path": "none.jsonl"}],
        "length": {"max_tokens": shape["prompt_tokens"] + response},
        "reward": f"{Path(__file__).resolve()}:no_reward",
        "num_epochs": 1,
        "evaluation": {"num_prompts": 1, "best_of": []},
        **shape["ppo"],
    }
    write_yaml(folder / "recipe.yaml", {"model": {"path": str(folder)}, "ppo": ppo})
    return load_recipe(folder / "recipe.yaml")


def machine(device: str) -> dict[str, Any]:
    """Which machine measured, and with which code."""
    import torch

    return {
        **describe_machine(),
        **describe_code(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in _PACKAGES},
        "allocator": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "GLIBC_"))},
    }


def increment(peak: PeakMemory) -> int:
    """Bytes of the highest sum until now: the device's, if it has an allocator of its own."""
    memory = peak.take()
    return memory.increment_bytes if memory.device_peak_bytes is None else memory.device_peak_bytes


def _network(folder: Path) -> Any:
    """A model with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def _tokenizer(num_words: int) -> Any:
    """A tokenizer of so many words: responses are decoded, and nothing depends on what they say."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    words |= {f"w{i}": i for i in range(len(words), num_words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

"""SFT on forked processes, alone and in pairs: `python -m tests.support.sft_ranks OUT`.

Each case leaves in OUT what came of it. The test that reads it is tests/invariant/test_sft_ranks.py.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

import sft.train  # noqa: F401  # once, before forks
from rlhf.parallel.deepspeed.sharded import assemble
from rlhf.parallel.start import start_process
from rlhf.parallel.world import world
from rlhf.settings.groups import RunSettings
from sft.__main__ import main as sft_stage
from sft.resumable import Trainer
from tests.support.small import WORDS, write_small_model
from tests.support.teams import fork, preload
from tests.unit.sft.demos import Log, poison, random_examples, sft_settings, small_start, trainer

TEAMS = {"one": (1, 0), "zero2": (2, 2), "zero3": (2, 3)}
"""Name → number of processes and ZeRO stage."""
POISONED = {1, 4}
"""Steps whose loss is not a number, though its gradient is, on the last rank alone."""
STAGES: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "eval_every_steps": 2},
    "lora": {"method": "lora", "gradient_checkpointing": True},
}
"""Name of a recipe → what is its own in the stage's settings."""


class WholeWeights:
    """Counts, outside training, the elements of weights that are whole on this rank."""

    def __init__(self) -> None:
        from deepspeed import zero

        self.cut: list[Any] = []
        self.is_training, self.peak, self.metrics = False, 0, dict[str, int]()
        note, enter = zero.Init._convert_to_deepspeed_param, zero.GatheredParameters.__enter__
        train: Any = Trainer.train

        def note_and_keep(init: Any, parameter: nn.Parameter) -> None:
            note(init, parameter)
            self.cut.append(parameter)

        def enter_and_count(gathering: Any) -> None:
            enter(gathering)
            if not self.is_training:
                self.peak = max(self.peak, self.whole)

        def train_apart(*args: Any, **kwargs: Any) -> Any:
            total = sum(parameter.ds_numel for parameter in self.cut)
            self.metrics, self.is_training = {"model": total, "before training": self.whole}, True
            result = train(*args, **kwargs)
            self.is_training = False
            return result

        zero.Init._convert_to_deepspeed_param = note_and_keep
        zero.GatheredParameters.__enter__ = enter_and_count
        Trainer.train = train_apart  # type: ignore[method-assign]

    @property
    def whole(self) -> int:
        """Elements that are whole now."""
        return sum(parameter.numel() for parameter in self.cut)

    def report(self) -> dict[str, int]:
        return self.metrics | {"at the end": self.whole, "peak": self.peak}


def lose(out: Path, name: str) -> None:
    """Train with poisoned losses."""
    settings = sft_settings(micro_batch_size=3)
    start_process(RunSettings(device="cpu"), max_grad_norm=settings.max_grad_norm)
    begin, log = small_start(out, settings), Log()
    built = trainer(out / f"lose-{name}", settings, random_examples(21), begin=begin, log=log)
    if world().rank == world().size - 1:
        poison(built, POISONED, gradient=False)
    built.train()
    model: Any = built.trained_model()
    assemble(model)
    if world().is_rank0:
        weights = {key: value.detach().clone() for key, value in model.named_parameters()}
        save_file(weights, out / f"lose-{name}.safetensors")
        metrics = {"skipped": built.guard.skipped_steps, "rows": log.rows}
        (out / f"lose-{name}.json").write_text(json.dumps(metrics))


def compute_in_bf16(out: Path) -> None:
    """Train under autocast. Around its engine DeepSpeed switches it off on CUDA: so this plays CUDA."""
    settings = sft_settings(micro_batch_size=3, num_epochs=1)
    start_process(RunSettings(device="cpu"), max_grad_norm=settings.max_grad_norm)
    built = trainer(out / "bf16", settings, random_examples(8), begin=small_start(out, settings), log=Log())
    built.computes_in_bf16 = True
    seen: set[tuple[str, str]] = set()
    model: Any = built.model
    linear = next(module for module in model.modules() if isinstance(module, nn.Linear))
    linear.register_forward_hook(
        lambda module, inputs, output: seen.add((str(module.weight.dtype), str(output.dtype)))
    )
    forward, is_enabled = model.forward, torch.is_autocast_enabled
    with mock.patch.object(torch, "is_autocast_enabled", lambda *of: is_enabled(*of) if of else True):
        built.train()
    trained: Any = built.trained_model()
    assert trained.forward == forward
    if world().is_rank0:
        (out / "bf16.json").write_text(json.dumps(sorted(seen)))


def run_stage(out: Path, recipe: str, name: str) -> None:
    """The whole stage, from a model in a folder to one."""
    whole = WholeWeights() if world().zero == 3 else None
    assert sft_stage(["--config", str(out / f"{recipe}.yaml"), f"run.name={recipe}-{name}"]) == 0
    if whole is not None:
        (out / f"{recipe}-{name}.rank{world().rank}.json").write_text(json.dumps(whole.report()))


def write_recipes(out: Path) -> None:
    write_small_model(out / "base")
    words = " ".join(WORDS).split()
    rows = [
        {"prompt": " ".join(words[i : i + 5]), "completion": " ".join(words[40 - i : 44 - i])}
        for i in range(32)
    ]
    (out / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared: dict[str, Any] = {
        "run": {"folder": str(out / "runs"), "device": "cpu", "gather": "layers", "name": "unset"},
        "tracking": {"wandb": "off"},
        "model": {"path": str(out / "base")},
        "sft": {
            "demonstrations": [{"path": str(out / "data.jsonl")}],
            "held_out_fraction": 0.3,
            "num_epochs": 2,
            "batch_size": 8,
            "micro_batch_size": 4,
            "learning_rate": 1e-2,
            "num_samples": 3,
            "sampling": {"max_response_tokens": 6},
        },
    }
    for name, settings in STAGES.items():
        recipe = shared | {"sft": shared["sft"] | settings}
        (out / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def main(out: Path, names: list[str]) -> None:
    """Work through the named cases, or all."""
    preload()
    write_recipes(out)
    small_start(out, sft_settings())
    if not names or "bf16" in names:
        fork(2, 3, lambda: compute_in_bf16(out))
    for name, (size, zero) in TEAMS.items():
        if not names or f"lose-{name}" in names:
            fork(size, zero, lambda name=name: lose(out, name))  # type: ignore[misc]
        for recipe in STAGES if name != "zero2" else ():
            if not names or f"{recipe}-{name}" in names:
                fork(size, zero, lambda name=name, recipe=recipe: run_stage(out, recipe, name))  # type: ignore[misc]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])

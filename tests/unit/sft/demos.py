"""Demonstrations of random words, and a training run on them in a moment."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf.data.records import Demonstration
from rlhf.settings.groups import ModelSettings, RunSettings, SourceSettings, TrackingSettings
from rlhf.settings.recipe import Recipe
from sft.config import SFTSettings
from sft.data import Example
from sft.model import Start, start
from sft.resumable import Trainer
from sft.steps import StepCallback
from sft.trainer import build_trainer
from tests.support.small import WORDS, write_small_model

EOS = 2


class Log:
    """A tracker that only remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(metrics)))


def sft_settings(**values: Any) -> SFTSettings:
    defaults: dict[str, Any] = {
        "method": "full",
        "demonstrations": [SourceSettings(path="unread.jsonl")],
        "num_epochs": 2,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 1e-2,
        "checkpoint_every_steps": 0,
    }
    return SFTSettings(**(defaults | values))


def random_examples(num: int, *, seed: int = 0, longest: int = 12) -> list[Example]:
    """Prompts and completions of random words; ids are those of `word_tokenizer`, and BOS is 1."""
    generator = random.Random(seed)
    examples = []
    for _ in range(num):
        prompt = [generator.randrange(4, 4 + len(WORDS)) for _ in range(generator.randint(1, longest))]
        completion = [generator.randrange(4, 4 + len(WORDS)) for _ in range(generator.randint(0, longest))]
        record = Demonstration(prompt=" ".join(map(str, prompt)), completion=" ".join(map(str, completion)))
        examples.append(Example(record, [1, *prompt], [*completion, EOS]))
    return examples


def small_start(folder: Path, settings: SFTSettings, *, pad_token: str = "<pad>", **model: Any) -> Start:
    path = folder / f"base-{pad_token.strip('<>')}"
    if not path.exists():
        write_small_model(path, pad_token=pad_token)
    return start(ModelSettings(path=str(path), **model), settings, texts=[], seed=0)


def recipe(*, seed: int = 0) -> Recipe:
    return Recipe(
        run=RunSettings(seed=seed),
        tracking=TrackingSettings(),
        model=ModelSettings(path="unread"),
        sections={},
        path=Path("unread.yaml"),
    )


def trainer(
    folder: Path,
    settings: SFTSettings,
    examples: list[Example],
    *,
    begin: Start | None = None,
    seed: int = 0,
    log: Log | None = None,
    log_every_steps: int = 1,
    evaluate: Callable[[Any], dict[str, float]] = lambda model: {},
) -> Trainer:
    """A trainer on the small model, with its log."""
    begin = begin or small_start(folder, settings)
    built = build_trainer(recipe(seed=seed), settings, begin, examples, folder)
    StepCallback(
        built,
        log or Log(),
        settings,
        log_every_steps=log_every_steps,
        advance=lambda steps: None,
        evaluate=evaluate,
    )
    return built


def weights(trained: Trainer) -> dict[str, torch.Tensor]:
    model: Any = trained.model
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def poison(trained: Trainer, steps: set[int], *, gradient: bool = True) -> None:
    """Make the loss of these optimizer steps, counted from 1, not a number, and its `gradient` or not."""

    def poisoned(model: Any, inputs: Any, outputs: Any) -> Any:
        if trained.state.global_step + 1 in steps:
            nan = float("nan")
            outputs.log_probs = outputs.log_probs * nan if gradient else outputs.log_probs + nan
        return outputs

    model: Any = trained.model
    model.register_forward_hook(poisoned)

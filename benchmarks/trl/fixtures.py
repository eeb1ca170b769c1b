"""The run folders that racers start from: published stages, a recipe, and the peer's copy of the inputs."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.base_model import EOS, SPECIALS, perturb, write_base_model
from benchmarks.workloads import Layers, PPOWorkload, RewardWorkload, Shape, lora_values
from ppo.config import PPOSettings
from ppo.data import load_prompts
from reward.data import Group
from reward.loss import Pair, ranked_pairs
from reward.model import ROLE, RewardCard, base_identity, score_sequences
from reward.publish import write_model
from rlhf.model.adapters import init_head
from rlhf.model.backbone import Backbone
from rlhf.runs.stage import StageRun, require
from rlhf.settings.groups import LoraSettings
from rlhf.settings.recipe import Recipe, load_recipe
from rlhf.settings.yaml_files import write_yaml

DATA_SEED = 1234
RECIPE = "recipe.yaml"
GROUPS = "groups.json"
_NUM_GOOD_WORDS = 32


def prepare_ppo(folder: Path, workload: PPOWorkload, shape: Shape, layers: Layers) -> Path:
    """Write a run folder with `sft/model`, `reward/model` and prompts; returns the recipe's path."""
    _fresh(folder)
    lora = lora_values(workload, layers, shape.num_layers)
    recipe = _write_recipe(folder, ppo=_ppo_section(workload, lora))
    _write_prompts(folder / "prompts.jsonl", workload, shape)
    _publish_sft(recipe, shape, eos_hazard=workload.eos_hazard)
    _publish_reward(recipe, LoraSettings.model_validate(lora), workload)
    return recipe.path


def prepare_reward(folder: Path, workload: RewardWorkload, shape: Shape, layers: Layers) -> Path:
    """Write a run folder with `sft/model` and groups of completions; returns the recipe's path."""
    _fresh(folder)
    recipe = _write_recipe(
        folder, reward=_reward_section(workload, lora_values(workload, layers, shape.num_layers))
    )
    _publish_sft(recipe, shape, eos_hazard=0.0)
    groups = synthetic_groups(workload, shape.vocab_size)
    rows = [vars(group) for group in groups]
    sides = rows[: workload.num_groups], rows[workload.num_groups :]
    (folder / GROUPS).write_text(json.dumps(sides), encoding="utf-8")
    return recipe.path


def write_prompt_ids(recipe: Recipe, path: Path) -> None:
    """Write the token ids of the training prompts that our racer draws from, for a peer to draw from."""
    settings = cast(PPOSettings, recipe.section("ppo"))
    backbone = Backbone.load(recipe.run_folder / "sft" / "model", settings=recipe.model)
    data = load_prompts(backbone, settings, seed=recipe.run.seed, run_folder=recipe.run_folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data.train.ids), encoding="utf-8")


def read_groups(run_folder: Path) -> tuple[list[Group], list[Group]]:
    """Training and held-out groups."""
    train, held_out = json.loads((run_folder / GROUPS).read_text(encoding="utf-8"))
    return [_read_group(row) for row in train], [_read_group(row) for row in held_out]


def synthetic_groups(workload: RewardWorkload, vocab_size: int) -> list[Group]:
    """Groups whose better completions hold a larger share of good words; 32 words are good, 32 bad.

    A completion is made of these words, one by one, with a share of good ones that is drawn uniformly: its
    quality is the share that came out, so a length says nothing about it.
    """
    random = np.random.default_rng(DATA_SEED)
    groups: list[Group] = []
    while len(groups) < workload.num_groups + workload.num_held_out:
        number = len(groups)
        prompt = random.integers(len(SPECIALS), vocab_size, workload.prompt_tokens).tolist()
        completions: list[list[int]] = []
        shares: list[float] = []
        for length in completion_lengths(workload, random):
            good = random.random(length) < random.random()
            words = random.integers(_NUM_GOOD_WORDS, size=length) + np.where(good, 0, _NUM_GOOD_WORDS)
            completions.append([*(words + len(SPECIALS)).tolist(), EOS])
            shares.append(float(good.mean()))
        if len(set(shares)) < len(shares):
            continue  # ranks without ties: every pair of every group counts
        ranks = (np.argsort(np.argsort(-np.array(shares))) + 1).tolist()
        groups.append(_group(number, prompt, completions, ranks))
    return groups


def completion_lengths(workload: RewardWorkload, random: np.random.Generator) -> list[int]:
    """Lengths of one group's completions, without EOS."""
    if not workload.skewed:
        return [workload.median_tokens] * workload.num_completions
    drawn = workload.median_tokens * np.exp(workload.sigma * random.standard_normal(workload.num_completions))
    return [int(length) for length in drawn.round().clip(workload.min_tokens, workload.max_tokens)]


def _read_group(row: dict[str, Any]) -> Group:
    pairs = [Pair(*pair) for pair in row["pairs"]]
    return Group(**{**row, "pairs": pairs})


def _group(number: int, prompt: list[int], completions: list[list[int]], ranks: list[int]) -> Group:
    return Group(
        key=f"prompt {number}",
        prompt=f"prompt {number}",
        completions=tuple(f"completion {k}" for k in range(len(completions))),
        labels=tuple(f"rank {rank}" for rank in ranks),
        prompt_ids=prompt,
        response_ids=completions,
        pairs=ranked_pairs([float(rank) for rank in ranks], with_ties=False),
    )


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_recipe(folder: Path, **sections: dict[str, Any]) -> Recipe:
    values = {
        "run": {"name": folder.name, "folder": str(folder.parent), "device": "cpu", "threads": 1},
        "tracking": {"wandb": "off"},
        "model": {"path": str(folder / "sft" / "model")},
        **sections,
    }
    write_yaml(folder / RECIPE, values)
    return load_recipe(folder / RECIPE)


def _ppo_section(workload: PPOWorkload, lora: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompts": [{"path": "{run}/prompts.jsonl"}],
        "sampling": {"max_response_tokens": workload.max_response_tokens, "batch_size": workload.rollouts},
        "missing_eos_penalty": 0.0,  # otherwise lengths would be trained while time is taken
        "lora": lora,
        "rollouts_per_iteration": workload.rollouts,
        "num_epochs": workload.num_epochs,
        "num_minibatches": workload.num_minibatches,
        "micro_batch_tokens": workload.micro_batch_tokens,
        "policy_learning_rate": workload.learning_rate,
        "value_learning_rate": workload.learning_rate,
        "sample_table_every": 0,
        "evaluation": {"num_prompts": 1, "every_iterations": 0},
    }


def _reward_section(workload: RewardWorkload, lora: dict[str, Any]) -> dict[str, Any]:
    return {
        "rankings": [{"path": "{run}/groups.json"}],  # not read: the groups come with their token ids
        "lora": lora,
        "num_epochs": workload.num_epochs,
        "batch_size": workload.batch_groups,
        "micro_batch_tokens": workload.micro_batch_tokens,
        "learning_rate": workload.learning_rate,
        "head_learning_rate": workload.learning_rate,
        "warmup_fraction": 0.0,
    }


def _write_prompts(path: Path, workload: PPOWorkload, shape: Shape) -> None:
    random = np.random.default_rng(DATA_SEED)
    size = (workload.num_prompts, workload.prompt_tokens)
    words = random.integers(shape.vocab_size - len(SPECIALS), size=size)
    prompts = [" ".join(f"w{i}" for i in row) for row in words.tolist()]
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
    path.write_text("".join(lines), encoding="utf-8")


def _publish_sft(recipe: Recipe, shape: Shape, *, eos_hazard: float) -> None:
    with _open(recipe, "sft") as stage:
        stage.publish(
            write_model=lambda folder: write_base_model(folder, shape, eos_hazard=eos_hazard),
            metrics={},
            counts={},
        )


def _publish_reward(recipe: Recipe, lora: LoraSettings, workload: PPOWorkload) -> None:
    """A reward adapter with random weights, normalized on random sequences."""
    backbone = Backbone.load(recipe.run_folder / "sft" / "model")
    backbone.add_adapter(ROLE, lora, seed=DATA_SEED)
    init_head(backbone.add_head(ROLE, bias=False), seed=DATA_SEED)
    generator = torch.Generator().manual_seed(DATA_SEED)
    perturb(backbone, ROLE, generator)
    length = workload.prompt_tokens + workload.max_response_tokens
    vocabulary = backbone.model.config.vocab_size
    texts = torch.randint(len(SPECIALS), vocabulary, (64, length), generator=generator).tolist()
    scores = score_sequences(backbone, texts, max_tokens=workload.micro_batch_tokens)
    card = RewardCard(
        base_sha256=base_identity(require(recipe.run_folder, "sft")),
        precision="fp32",
        mean=float(scores.mean()),
        std=float(scores.std()),
        num_reference_samples=len(texts),
        eos_ids=list(backbone.eos_ids),
        max_tokens=backbone.max_length,
    )
    with _open(recipe, "reward") as stage:
        stage.publish(write_model=lambda folder: write_model(backbone, card, folder), metrics={}, counts={})


def _open(recipe: Recipe, stage: str) -> StageRun:
    opened = StageRun.open(recipe, stage, {}, sections=("model", "run"))
    assert opened is not None
    return opened

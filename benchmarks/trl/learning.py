"""The learning race: our stages up to the reward model, then both racers under every seed, then the judge."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_code, describe_machine
from benchmarks.processes import ROOT, environment, file_name
from benchmarks.report import write_report
from benchmarks.trl.jobs import Curve, Job, prompt_ids_path
from benchmarks.trl.learning_summary import learning_markdown, summarize_learning
from benchmarks.trl.peer_install import install_peer
from benchmarks.trl.race import OUR_PPO, PEER_PPO, Racer, run_racer, with_seed
from benchmarks.workloads import WHAT_BOTH_CAN, Layers, adapted_layers, racer_pairs
from rlhf.errors import UserError
from rlhf.settings.recipe import load_recipe

STAGES = (
    ("labeling", "demonstrations"),
    ("sft",),
    ("labeling", "samples"),
    ("labeling", "rankings"),
    ("reward",),
)
"""What both racers start from."""
PICTURE = "There is no picture: the project does not depend on a plotting library; the JSON has the curves."


@dataclass(frozen=True)
class LearningOptions:
    """One learning race."""

    config: Path
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    layers: tuple[Layers, ...]
    sides: tuple[str, ...]
    snapshot_every: int
    threads: int
    build: Path
    results: Path

    @property
    def folder(self) -> Path:
        return self.build.resolve() / "learning"

    def recipe_overrides(self, layers: Layers) -> list[str]:
        """The recipe's settings for this race, the user's last."""
        where = [f"run.name={layers.replace(' ', '-')}", f"run.folder={self.folder}"]
        return [
            *where,
            f"run.threads={self.threads}",
            "run.device=cpu",
            "tracking.wandb=off",
            "ppo.sample_table_every=0",
            *WHAT_BOTH_CAN,
            *self.overrides,
            *layer_overrides(layers, self._num_layers()),
        ]

    def _num_layers(self) -> int:
        """Layers of the base model."""
        model = load_recipe(self.config, self.overrides).model
        if model.path is None:
            assert model.scratch is not None
            return model.scratch.num_layers
        from plan.model import read_config

        return int(read_config(model).get_text_config().num_hidden_layers)


def layer_overrides(layers: Layers, num_layers: int) -> list[str]:
    """Where our adapters sit, as settings of the recipe."""
    adapted = adapted_layers(layers, num_layers)
    return [f"{stage}.lora.top_layers={len(adapted)}" for stage in ("reward", "ppo")] if adapted else []


def race_learning(options: LearningOptions) -> dict[str, Any]:
    """Run the race; returns the report."""
    path = install_peer(options.build.resolve()) if "peer" in options.sides else None
    curves: list[Curve] = []
    for layers in options.layers:
        overrides = options.recipe_overrides(layers)
        prepare(options.config, overrides, options.threads)
        run_folder = options.folder / layers.replace(" ", "-")
        for number, seed in enumerate(options.seeds):
            _write_prompts(options.config, overrides, run_folder, seed)
            racers = [_racer(side, layers, overrides, path, options) for side in options.sides]
            for racer in racers if number % 2 == 0 else reversed(racers):
                curves.append(_run(racer, seed, options.folder / f"seed-{seed}"))
    report = _report(curves, options)
    text = learning_markdown(report)
    write_report(report, text, options.results, report["title"].replace(", ", "-"))
    print(f"\n{text}", flush=True)
    return report


def prepare(config: Path, overrides: Sequence[str], threads: int) -> None:
    """Run our stages up to the reward model; finished ones are up to date at once."""
    sections = load_recipe(config, overrides).sections
    for module, *arguments in STAGES:
        if module not in sections:
            continue  # a recipe that comes with its data labels nothing
        command = [sys.executable, "-m", module, *arguments, "--config", str(config), *overrides]
        print(f"  {' '.join([module, *arguments])}", flush=True)
        done = subprocess.run(command, cwd=ROOT, env=environment(threads, None), check=False)
        if done.returncode:
            raise UserError("a stage that both racers start from has failed", where=module, fix="See above.")


def _write_prompts(config: Path, overrides: Sequence[str], run_folder: Path, seed: int) -> None:
    from benchmarks.trl.fixtures import write_prompt_ids

    write_prompt_ids(load_recipe(config, [*overrides, f"run.seed={seed}"]), prompt_ids_path(run_folder, seed))


def _racer(
    side: str, layers: Layers, overrides: list[str], path: Path | None, options: LearningOptions
) -> Racer:
    job = Job(
        racer=f"{side}, {layers}",
        recipe=str(options.config),
        overrides=overrides,
        run_folder=str(options.folder / layers.replace(" ", "-")),
        output=str(options.folder / f"{side}-{layers.replace(' ', '-')}"),
        seed=options.seeds[0],
        threads=options.threads,
        layers=layers,
        num_warmup_laps=0,
        snapshot_every=options.snapshot_every,
    )
    return Racer(PEER_PPO, job, path) if side == "peer" else Racer(OUR_PPO, job)


def _run(racer: Racer, seed: int, folder: Path) -> Curve:
    job = with_seed(racer.job, seed)
    print(f"  seed {seed}: {job.racer} ... ", end="", flush=True)
    result = run_racer(racer, job, folder)
    print(f"{sum(lap.cpu_seconds for lap in result.laps):.0f} CPU s; judging ... ", end="", flush=True)
    name = file_name(job.racer)
    job_file = folder / f"{name}.job.json"
    result_file = folder / f"{name}.result.json"
    curve_file = folder / f"{name}.curve.json"
    job_file.write_text(job.to_json(), encoding="utf-8")
    result_file.write_text(result.to_json(), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.trl.judge", str(job_file), str(result_file), str(curve_file)]
    subprocess.run(command, cwd=ROOT, env=environment(job.threads, None), check=True)
    curve = Curve.read(curve_file)
    print(f"gold {curve.points[0].gold:.3f} → {curve.points[-1].gold:.3f}", flush=True)
    return curve


def _report(curves: Sequence[Curve], options: LearningOptions) -> dict[str, Any]:
    from benchmarks.trl.peer_settings import LEARNING_DIFFERENCES, PPO_DIFFERENCES

    recipe = load_recipe(options.config, options.recipe_overrides(options.layers[0]))
    return {
        "title": f"learning, {options.config.parent.name}",
        "conditions": f"Both racers from one SFT model and one reward model of seed {recipe.run.seed}; gold "
        f"score and KL on {curves[0].num_prompts} held-out prompts, one sample each, same noise; clocks "
        f"stand still while policies are kept. {PICTURE}",
        "machine": describe_machine(),
        "code": describe_code(),
        "device": "cpu",
        "threads": options.threads,
        "seeds": list(options.seeds),
        "settings": recipe.resolved["ppo"],
        "differences": [*PPO_DIFFERENCES, *LEARNING_DIFFERENCES],
        **summarize_learning(curves, racer_pairs(options.layers)),
        "curves": [curve.model_dump() for curve in curves],
    }

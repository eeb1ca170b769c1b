"""`python -m benchmarks.learning --model PATH`: who learns sooner, on the stories task.

Both racers start from the SFT model and the reward model that our own stages publish for the recipe, train
with the same settings, and keep their policies every few iterations, outside of their clocks. Afterwards one
judge measures all of them: gold score and KL on the same held-out prompts with the same noise.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import Curve, Job, prompt_ids_path
from benchmarks.learning_summary import learning_markdown, summarize_learning
from benchmarks.machine import describe_code, describe_machine
from benchmarks.peer_install import install_peer
from benchmarks.race import OUR_PPO, PEER_PPO, ROOT, Racer, alone_in, environment, run_racer, with_seed
from benchmarks.workloads import WHAT_BOTH_CAN, Layers, adapted_layers, racer_pairs
from rlhf.commands.process import run_command
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
    _write(report, options.results)
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
    from benchmarks.fixtures import write_prompt_ids

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
    files = [folder / f"{job.racer.replace(', ', '-').replace(' ', '-')}.{kind}.json" for kind in _FILES]
    for file, record in zip(files, (job, result), strict=False):
        file.write_text(record.to_json(), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.judge", *(str(file) for file in files)]
    subprocess.run(command, cwd=ROOT, env=environment(job.threads, None), check=True)
    curve = Curve.read(files[-1])
    print(f"gold {curve.points[0].gold:.3f} → {curve.points[-1].gold:.3f}", flush=True)
    return curve


_FILES = ("job", "result", "curve")


def _report(curves: Sequence[Curve], options: LearningOptions) -> dict[str, Any]:
    from benchmarks.peer_settings import LEARNING_DIFFERENCES, PPO_DIFFERENCES

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


def _write(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = learning_markdown(report)
    name = report["title"].replace(", ", "-")
    data = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(f"{data}\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(f"\n{text}", flush=True)


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_intermixed_args(argv)
    model = [f"model.path={arguments.model}"] if arguments.model else []
    options = LearningOptions(
        config=arguments.config,
        overrides=(*model, *arguments.overrides),
        seeds=tuple(arguments.seeds),
        layers=tuple(arguments.layers),
        sides=(arguments.only,) if arguments.only else ("peer", "ours"),
        snapshot_every=arguments.every,
        threads=arguments.threads,
        build=arguments.build,
        results=arguments.results,
    )
    with alone_in(options.build):
        race_learning(options)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, allow_abbrev=False
    )
    made.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings of the recipe")
    made.add_argument("--model", help="the base model: a folder or a hub id [the recipe's]")
    made.add_argument("--config", type=Path, default=Path("configs/stories/recipe.yaml"), help="recipe")
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of PPO, both racers [1 2 3]")
    made.add_argument("--every", type=int, default=3, help="iterations between two kept policies [3]")
    made.add_argument("--layers", nargs="+", choices=["all layers", "top half"], default=["all layers"])
    made.add_argument("--only", choices=["ours", "peer"], help="leave the other side out")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of every process [1]")
    made.add_argument("--build", type=Path, default=Path("build/benchmarks"), help="working folder")
    made.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where JSON goes")
    return made


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

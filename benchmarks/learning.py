"""`python -m benchmarks.learning --model PATH`: who learns sooner, on the stories task.

Both racers start from the SFT model and the reward model that our own stages publish for the recipe, train
with the same settings, and keep their policies every few iterations, outside of their clocks. Afterwards one
judge evaluates all of them: gold score and KL on the same held-out prompts with the same noise.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import alone_in
from benchmarks.trl.learning import LearningOptions, race_learning
from rlhf.commands.process import run_command


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

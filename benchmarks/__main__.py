"""`python -m benchmarks [RACE ...]`: race the pipeline against its peer, print tables, write JSON.

Races: ppo-fixed, ppo-real, ppo-memory, reward. The learning race is `python -m benchmarks.learning`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workloads import MEMORY_SHAPE, PPO_WORKLOADS, REWARD_WORKLOADS, SHAPES, SPEED_SHAPES
from rlhf.commands.process import run_command
from rlhf.errors import UserError

if TYPE_CHECKING:
    from benchmarks.trl.suite import Options

COMPLETIONS = (2, 4, 9)
RACES = ("ppo-fixed", "ppo-real", "ppo-memory", "reward")


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_intermixed_args(argv)
    for name, least in (("rounds", 1), ("iterations", 1), ("threads", 1), ("steps", 0)):
        if getattr(arguments, name) < least:
            raise UserError(
                f"must be at least {least}", where=f"--{name}", fix="Leave it out for the default."
            )
    races = arguments.races or list(RACES)
    for race in races:
        if race not in RACES:
            raise UserError(
                f"there is no race `{race}`", where="races", fix=f"Choose from {', '.join(RACES)}."
            )
    for name in arguments.shapes or ():
        if name not in SHAPES:
            raise UserError(
                f"there is no shape `{name}`", where="--shapes", fix=f"Choose from {', '.join(SHAPES)}."
            )
    from benchmarks.processes import alone_in
    from benchmarks.trl.suite import Options

    options = Options(
        rounds=arguments.rounds,
        laps=arguments.iterations,
        threads=arguments.threads,
        device=arguments.device,
        seed=arguments.seed,
        layers=tuple(arguments.layers or ["all layers", "top half"]),
        sides=(arguments.only,) if arguments.only else ("peer", "ours"),
        build=arguments.build,
        results=arguments.results,
    )
    with alone_in(options.build):
        for race in races:
            if race == "reward":
                _race_rewards(options, arguments)
            else:
                _race_ppo(race, options, arguments)
    return 0


def _race_rewards(options: "Options", arguments: argparse.Namespace) -> None:
    from benchmarks.trl.suite import race_reward

    shape = SHAPES[(arguments.shapes or SPEED_SHAPES)[0]]
    for name, workload in REWARD_WORKLOADS.items():
        if workload.num_completions in (arguments.completions or COMPLETIONS):
            print(f"{name}, {shape.name}", flush=True)
            race_reward(workload, shape, replace(options, laps=arguments.steps))


def _race_ppo(race: str, options: "Options", arguments: argparse.Namespace) -> None:
    from benchmarks.trl.suite import race_ppo

    is_memory = race == "ppo-memory"
    if is_memory:  # peaks hardly vary
        options = replace(options, rounds=min(options.rounds, 3), laps=1, warmup_laps=0)
    for name in arguments.shapes or ((MEMORY_SHAPE,) if is_memory else SPEED_SHAPES):
        print(f"{race}, {name}", flush=True)
        race_ppo(PPO_WORKLOADS[race], SHAPES[name], options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    made.add_argument("races", nargs="*", metavar="RACE", help=f"{', '.join(RACES)} [all of them]")
    made.add_argument("--rounds", type=int, default=5, help="times that every racer starts [5]")
    made.add_argument("--iterations", type=int, default=2, help="counted PPO iterations in a start [2]")
    made.add_argument("--steps", type=int, default=0, help="reward: optimizer steps at most [all]")
    made.add_argument("--shapes", nargs="+", metavar="SHAPE", help=f"{', '.join(SHAPES)} [the race's own]")
    made.add_argument(
        "--completions", nargs="+", type=int, choices=COMPLETIONS, help="reward: of a prompt [all]"
    )
    made.add_argument(
        "--layers", nargs="+", choices=["all layers", "top half"], help="where adapters sit [both]"
    )
    made.add_argument("--only", choices=["ours", "peer"], help="leave the other side out")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of every racer [1]")
    made.add_argument("--device", default="cpu", help="cpu or cuda [cpu]")
    made.add_argument("--seed", type=int, default=0, help="seed of the first round [0]")
    made.add_argument("--build", type=Path, default=Path("build/benchmarks"), help="working folder")
    made.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where JSON goes")
    return made


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

"""`python -m tests.support.preempt_child launch|rank …`: `rlhf.launch` or `ppo`, which note their phases.

Like the commands that they stand for, they load what is heavy only when they obey signals.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

import ppo.__main__
import rlhf.launch
from rlhf.commands.process import exit_now, run_command

WATCHED = {
    "sampling": ("ppo.train", None, "collect"),
    "training": ("ppo.update", "Updater", "update"),
    "measuring": ("ppo.evaluate", "Evaluator", "evaluate"),
    "saving": ("rlhf.runs.checkpoints", None, "save"),
}
"""Phase → module, class and function."""


def launch(argv: Sequence[str]) -> int:
    """`rlhf.launch`, of ranks that are `rank`."""
    arguments_of = rlhf.launch.launch_arguments

    def with_rank(arguments: argparse.Namespace) -> list[str]:
        found = arguments_of(arguments)
        at = found.index("-m") + 1
        return [*found[:at], "tests.support.preempt_child", "rank", *found[at + 1 :]]

    rlhf.launch.launch_arguments = with_rank
    return rlhf.launch.main(argv)


def rank(argv: Sequence[str]) -> int:
    """`python -m ppo`, which writes its phases down."""
    from tests.support.soak_child import announce

    for phase, (module, holder, name) in WATCHED.items():
        owner = importlib.import_module(module)
        owner = getattr(owner, holder) if holder else owner
        setattr(owner, name, announce(phase, getattr(owner, name)))
    return ppo.__main__.main(argv)


if __name__ == "__main__":
    main = {"launch": launch, "rank": rank}[sys.argv.pop(1)]
    exit_now(run_command(main))

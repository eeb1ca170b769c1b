"""`python -m tests.support.soak_child …`: `python -m ppo …`, writing down when it samples, trains and saves.

Every line of the file named by SOAK_EVENTS is `<process> <rank> <phase> <begin or end>`.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import ppo.__main__
import ppo.update
from ppo.evaluate import EVALUATION
from ppo.prompts import Requests
from ppo.rollout import Sampled, Sampler
from rlhf.commands.process import run_command
from rlhf.runs import checkpoints

SAMPLE = Sampler.sample


def announce(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a line in the file when it begins and one when it ends."""
    file = os.open(os.environ["SOAK_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    who = f"{os.getpid()} {os.environ.get('RANK', '0')}"

    @functools.wraps(function)
    def announced(*args: Any, **kwargs: Any) -> Any:
        os.write(file, f"{who} {phase} begin\n".encode())
        result = function(*args, **kwargs)
        os.write(file, f"{who} {phase} end\n".encode())
        return result

    return announced


def sample_in_training(sampler: Sampler, requests: Requests, *, role: str) -> Sampled:
    """`Sampler.sample`, announced but for evaluations, which sample too."""
    is_evaluation = requests.keys[0][0] == EVALUATION
    chosen = SAMPLE if is_evaluation else announced_sample()
    return chosen(sampler, requests, role=role)


@functools.cache
def announced_sample() -> Callable[..., Any]:
    return announce("sampling", SAMPLE)


if __name__ == "__main__":
    setattr(Sampler, "sample", sample_in_training)  # noqa: B010  mypy refuses the plain assignment
    for module, name, phase in (
        (ppo.update.Updater, "update", "training"),
        (checkpoints, "save", "saving"),
    ):
        setattr(module, name, announce(phase, getattr(module, name)))
    sys.exit(run_command(ppo.__main__.main))

"""`python -m plan`: what each stage of a recipe needs on each device, and whether that fits."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf.commands.arguments import SHARED, Sections, command_parser, load
from rlhf.commands.process import run_command
from rlhf.errors import UserError
from rlhf.settings.recipe import Recipe

if TYPE_CHECKING:
    from plan.memory import Devices

DESCRIPTION = (
    "Say what each stage of a recipe needs on each device, and whether it fits; only the model's config is\n"
    "read. docs/memory.md says what is counted."
)
_GIB = 2**30


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_intermixed_args(argv)
    _check_numbers(arguments)
    recipe = load(arguments)
    from plan.model import Sketch
    from plan.stages import Request, plan_recipe
    from plan.table import render

    devices = _devices(recipe, arguments)
    sketch = Sketch.of(recipe.model, on_cuda=devices.on_cuda)
    plans = plan_recipe(Request(recipe, sketch, devices, tokens=arguments.tokens))
    print(render(sketch, plans, devices))
    return 0


def _parser() -> argparse.ArgumentParser:
    used: Sections = {name: SHARED[name] for name in ("model", "run")}
    parser = command_parser("plan", DESCRIPTION, lambda: used)
    parser.add_argument("--gpus", type=int, metavar="N", help="CUDA devices [this machine's own device]")
    parser.add_argument("--zero", type=int, choices=range(4), default=0, help="DeepSpeed's ZeRO stage [0]")
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="memory of one device [this machine's device's]"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="longest sequence, where the recipe sets no length.max_tokens"
    )
    return parser


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Before anything is imported that takes its time.

    Raises:
        UserError: a number that makes no sense.
    """
    for name in ("gpus", "memory", "tokens"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(
                "must be a number above 0", where=f"--{name}", fix="Leave it out for the default."
            )


def _devices(recipe: Recipe, arguments: argparse.Namespace) -> "Devices":
    """The devices that are asked for, or this machine's own."""
    from plan.memory import Devices

    kind, own_bytes = _own_device(recipe.run.device)
    on_cuda = kind == "cuda" or arguments.gpus is not None
    memory: int | None = own_bytes if on_cuda == (kind == "cuda") else None
    if arguments.memory is not None:
        memory = int(arguments.memory * _GIB)
    return Devices(arguments.gpus or 1, arguments.zero, memory, on_cuda)


def _own_device(wanted: str) -> tuple[str, int | None]:
    """The kind of the device that the stages would use here, and its memory."""
    import torch

    if wanted.startswith("cuda") or (wanted == "auto" and torch.cuda.is_available()):
        here = torch.cuda.is_available()
        return "cuda", torch.cuda.get_device_properties(0).total_memory if here else None
    try:
        return "cpu", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return "cpu", None


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

"""What a command of a labeling project is, and the options that several of them have."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from rlhf.errors import UserError

Run = Callable[[argparse.Namespace], int]


Arguments = Callable[[argparse.ArgumentParser], None]


DISPUTE_THRESHOLD = 0.7
"""Agreement below which an item counts as disputed."""


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    summary: str
    arguments: Arguments
    run: Run


def add_labeler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labeler", required=True, metavar="NAME", help="who is at work")


def add_threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold",
        type=_share,
        default=DISPUTE_THRESHOLD,
        help="items whose labels agree less are disputed, from 0 to 1 [%(default)s]",
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:  # so is no NaN
        raise UserError(f"{text} is no threshold", where="--threshold", fix="Give a number from 0 to 1.")
    return value

"""All commands of a labeling project, by name."""

import argparse
from collections.abc import Sequence

from labeling.commands import files, review, work
from labeling.commands.command import Command

COMMANDS: dict[str, Command] = {
    "create": Command("make a labeling project", files.create_arguments, files.create_command),
    "rank": Command(
        "rank items: the labeler's screen (? in it lists the keys)", work.rank_arguments, work.rank_command
    ),
    "serve": Command(
        "rank in a browser: the same screen, by tokens", work.serve_arguments, work.serve_command
    ),
    "token": Command(
        "print a new token by which a browser knows a labeler", work.token_arguments, work.token_command
    ),
    "status": Command(
        "show progress, pace, agreement and disputed items", review.status_arguments, review.status_command
    ),
    "adjudicate": Command(
        "list disputed items, or decide them on the screen",
        review.adjudicate_arguments,
        review.adjudicate_command,
    ),
    "simulate": Command("let a scripted labeler rank", work.simulate_arguments, work.simulate_command),
    "export": Command(
        "write the labels as training data, for `make reward`", files.export_arguments, files.export_command
    ),
    "import": Command(
        "enter rankings and pairs made elsewhere", files.import_arguments, files.import_command
    ),
}


def run(name: str, argv: Sequence[str]) -> int:
    """Parse the command's arguments and run it.

    Raises:
        UserError: whatever the user can correct.
    """
    command = COMMANDS[name]
    text = f"{command.summary[0].upper()}{command.summary[1:]}."
    parser = argparse.ArgumentParser(prog=f"python -m labeling {name}", description=text, allow_abbrev=False)
    parser.add_argument(
        "--project",
        required=True,
        metavar="WHERE",
        help="the project: a folder (SQLite), or postgresql://user@host/database",
    )
    command.arguments(parser)
    return command.run(parser.parse_args(argv))

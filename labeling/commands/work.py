"""`rank`, `serve`, `token` and `simulate`: who labels, and where.

Everything heavy is imported where it is used, so that `--help` and a labeler's first item come at once.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from labeling.commands.command import add_labeler
from rlhf.errors import UserError

if TYPE_CHECKING:
    from labeling.sessions.labeling_session import LabelingSession


def rank_arguments(parser: argparse.ArgumentParser) -> None:
    add_labeler(parser)
    parser.add_argument("--plain", action="store_true", help="line by line, for dumb terminals and scripts")


def rank_command(arguments: argparse.Namespace) -> int:
    from labeling.sessions.session import Session
    from labeling.store.project import Project

    with Project.open(arguments.project) as project, Session(project, arguments.labeler) as session:
        work(session, plain=arguments.plain)
    return 0


def work(session: "LabelingSession", *, plain: bool) -> None:
    """Let somebody work on the terminal until they quit or nothing is left."""
    if plain or not _full_screen():
        from labeling.terminal.plain import PlainScreen

        PlainScreen(session, sys.stdin, sys.stdout).run()
    else:
        os.environ.setdefault("TEXTUAL_FPS", "120")  # a key waits half as long for the next frame
        from labeling.terminal.app import run_screen

        run_screen(session)


def _full_screen() -> bool:
    """Whether a screen can be drawn: on a terminal that can do it, or in a browser by way of `serve`."""
    if "TEXTUAL_DRIVER" in os.environ:
        return True
    terminals = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))  # it draws on stderr
    return terminals and os.environ.get("TERM", "dumb") != "dumb"


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on [%(default)s]")
    add("--port", type=int, default=8000, help="0: any that is free [%(default)s]")
    add("--public-url", metavar="URL", help="as browsers see it, behind a proxy: https://labels.example.org")


def serve_command(arguments: argparse.Namespace) -> int:
    from labeling.store.project import Project

    try:
        from labeling.browser.run import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"`{error.name}` is not installed", where="serve", fix="pip install 'triptych[browser]'"
        ) from None
    with Project.open(arguments.project) as project:
        serve(project, arguments)
    return 0


def token_arguments(parser: argparse.ArgumentParser) -> None:
    add_labeler(parser)


def token_command(arguments: argparse.Namespace) -> int:
    from labeling.store.project import Project

    print(Project.open(arguments.project).issue_token(arguments.labeler))
    return 0


def simulate_arguments(parser: argparse.ArgumentParser) -> None:
    add_labeler(parser)
    add = parser.add_argument
    add("--scorer", required=True, metavar="FILE.py:FUNCTION", help="what the labeler goes by")
    add("--error-rate", type=float, default=0.0, help="chance that a comparison is wrong [%(default)s]")
    add("--tie-width", type=float, default=0.0, help="scores no further apart look equal [%(default)s]")
    add("--max-items", type=int, metavar="N", help="stop after so many [when nothing is left]")
    add("--seed", type=int, default=0, help="of the errors [%(default)s]")


def simulate_command(arguments: argparse.Namespace) -> int:
    from labeling.sessions.simulate import Script, simulate
    from labeling.store.project import Project
    from rlhf.data.scorers import load_scorer

    if not 0 <= arguments.error_rate <= 0.5:
        raise UserError("an error rate is between 0 and 0.5", where="--error-rate", fix="Give another.")
    if arguments.tie_width < 0:
        raise UserError("a tie width is not negative", where="--tie-width", fix="Give another.")
    script = Script(
        scorer=load_scorer(arguments.scorer),
        error_rate=arguments.error_rate,
        tie_width=arguments.tie_width,
        max_items=arguments.max_items,
        seed=arguments.seed,
    )
    number = simulate(Project.open(arguments.project), arguments.labeler, script)
    print(f"simulate: {arguments.labeler} has ranked {number:,} items")
    return 0

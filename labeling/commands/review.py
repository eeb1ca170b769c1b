"""`status` and `adjudicate`: what the labels say, and decisions on disputed items.

Everything heavy is imported where it is used, so that `--help` and a labeler's first item come at once.
"""

import argparse
from typing import TYPE_CHECKING

from labeling.commands.command import add_threshold
from rlhf.errors import UserError

if TYPE_CHECKING:
    from labeling.store.project import Project

from labeling.commands.work import work


def status_arguments(parser: argparse.ArgumentParser) -> None:
    add_threshold(parser)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument("--pseudonyms", action="store_true", help="do not name the labelers")


def status_command(arguments: argparse.Namespace) -> int:
    from labeling.analysis.report import print_status, status_json
    from labeling.analysis.status import status
    from labeling.store.project import Project

    project = Project.open(arguments.project)
    found = status(project, threshold=arguments.threshold)
    if arguments.pseudonyms:
        found = found.renamed(project.pseudonym)
    if arguments.json:
        print(status_json(found))
    else:
        print_status(found)
    return 0


def adjudicate_arguments(parser: argparse.ArgumentParser) -> None:
    add_threshold(parser)
    add = parser.add_argument
    add("--labeler", metavar="NAME", help="who decides; without it, disputed items are listed")
    add("--plain", action="store_true", help="line by line, for dumb terminals and scripts")
    add("--item", type=int, metavar="N", help="decide this item and no other")
    add("--ranks", metavar="R,R,...", help='its final ranks, in the order in which the list shows: "1,2,F"')
    add("--note", default="", metavar="TEXT", help="why")
    add("--limit", type=int, default=20, metavar="N", help="list at most so many [%(default)s]")


def adjudicate_command(arguments: argparse.Namespace) -> int:
    from labeling.store.project import Project

    with Project.open(arguments.project) as project:
        if arguments.item is not None or arguments.ranks is not None:
            _decide(project, arguments)
        elif arguments.labeler is not None:
            from labeling.sessions.adjudication import Adjudication

            with Adjudication(project, arguments.labeler, threshold=arguments.threshold) as adjudication:
                work(adjudication, plain=arguments.plain)
        else:
            from labeling.analysis.decisions import disputes
            from labeling.analysis.report import print_disputes

            print_disputes(project, disputes(project, threshold=arguments.threshold), limit=arguments.limit)
    return 0


def _decide(project: "Project", arguments: argparse.Namespace) -> None:
    from labeling.analysis.decisions import decide
    from labeling.terminal.plain import parse_ranks

    if arguments.item is None or arguments.ranks is None or arguments.labeler is None:
        raise UserError(
            "a decision needs an item, ranks and a name",
            where="adjudicate",
            fix="Give --item, --ranks and --labeler; --labeler alone shows the items one after the other.",
        )
    ranks = parse_ranks(arguments.ranks)
    decide(project, arguments.item, ranks, by=arguments.labeler, note=arguments.note)
    print(f"adjudicate: item {arguments.item} is decided")

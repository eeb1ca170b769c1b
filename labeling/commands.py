"""The commands of a labeling project: what each takes, and what it does with it.

Everything heavy is imported where it is used, so that `--help` and a labeler's first item come at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labeling.store.rules import LabelingRules
from rlhf.errors import UserError

if TYPE_CHECKING:
    from labeling.sessions.labeling_session import LabelingSession
    from labeling.store.project import Project

Run = Callable[[argparse.Namespace], int]
Arguments = Callable[[argparse.ArgumentParser], None]

THRESHOLD = 0.7
"""Agreement below which an item counts as disputed."""


@dataclass(frozen=True)
class Sampling:
    """What `create` samples its items from."""

    config: Path
    overrides: tuple[str, ...]
    models: tuple[str, ...]
    temperatures: tuple[float, ...]


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    summary: str
    arguments: Arguments
    run: Run


def run(name: str, argv: Sequence[str]) -> int:
    """Parse the command's arguments and run it.

    Raises:
        UserError: whatever the user can mend.
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


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    default = LabelingRules()
    add = parser.add_argument
    add("--items", type=Path, metavar="FILE", help="prompts with completions, as `samples` writes them")
    add("--config", type=Path, metavar="RECIPE", help="instead of --items: sample as `labeling.samples` says")
    add("--set", action="append", metavar="key.sub=value", help="a setting that replaces the recipe's")
    add(
        "--model",
        action="append",
        metavar="MODEL",
        help="what to sample from; again for more [the SFT model]",
    )
    add("--temperature", action="append", type=float, metavar="T", help="again for more [the recipe's]")
    add("--gold", type=Path, metavar="FILE", help="rankings with known answers, mixed in unseen")
    add("--qualification", type=Path, metavar="FILE", help="rankings that every labeler judges first")
    add("--scores", type=Path, metavar="FILE", help="the items, scored by `python -m reward score`")
    add("--instructions", type=Path, metavar="FILE", help="what labelers read, in Markdown [a good default]")
    add("--overlap", type=int, default=default.overlap, help="labelers for each item [%(default)s]")
    add("--no-ties", action="store_true", help="two completions may not share a rank")
    add("--quality-scores", action="store_true", help="labelers may give scores from 1 to 7, too")
    add(
        "--order",
        choices=["least_labelled", "uncertainty"],
        default=default.order,
        help="which items come first; uncertainty needs --scores [%(default)s]",
    )
    add("--gold-share", type=float, default=default.gold_share, help="share of gold items [%(default)s]")
    add(
        "--qualification-accuracy",
        type=float,
        default=default.qualification_accuracy,
        help="share of its pairs that must be judged as the answers do [%(default)s]",
    )
    add(
        "--lease-minutes",
        type=float,
        default=default.lease_seconds / 60,
        help="an item left alone for so long goes to another labeler [%(default)s]",
    )
    add("--seed", type=int, default=default.seed, help="of the orders shown [%(default)s]")


def _create(arguments: argparse.Namespace) -> int:
    from labeling.exchange.creation import Sources, create

    if (arguments.items is None) == (arguments.config is None):
        raise UserError(
            "there is nothing to rank, or too much",
            where="create",
            fix="Give either --items FILE, such as runs/RUN/samples/samples.jsonl, or --config RECIPE.",
        )
    if arguments.order == "uncertainty" and arguments.scores is None:
        raise UserError("order by uncertainty needs scores", where="create", fix="Give --scores FILE.")
    values = {
        "overlap": arguments.overlap,
        "ties": not arguments.no_ties,
        "quality_scores": arguments.quality_scores,
        "order": arguments.order,
        "gold_share": arguments.gold_share,
        "qualification_accuracy": arguments.qualification_accuracy,
        "lease_seconds": arguments.lease_minutes * 60,
        "seed": arguments.seed,
    }
    sources = Sources(
        items=arguments.items,
        sampling=_sampling(arguments),
        gold=arguments.gold,
        qualification=arguments.qualification,
        scores=arguments.scores,
        instructions=arguments.instructions,
    )
    create(arguments.project, values, sources)
    return 0


def _sampling(arguments: argparse.Namespace) -> Sampling | None:
    if arguments.config is not None:
        return Sampling(
            config=arguments.config,
            overrides=tuple(arguments.set or ()),
            models=tuple(arguments.model or ()),
            temperatures=tuple(arguments.temperature or ()),
        )
    if arguments.model or arguments.temperature or arguments.set:
        raise UserError("there is no recipe to sample by", where="create", fix="Give --config RECIPE.")
    return None


def _rank_arguments(parser: argparse.ArgumentParser) -> None:
    _labeler(parser)
    parser.add_argument("--plain", action="store_true", help="line by line, for dumb terminals and scripts")


def _rank(arguments: argparse.Namespace) -> int:
    from labeling.sessions.session import Session
    from labeling.store.project import Project

    with Project.open(arguments.project) as project, Session(project, arguments.labeler) as session:
        _work(session, plain=arguments.plain)
    return 0


def _work(session: "LabelingSession", *, plain: bool) -> None:
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


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on [%(default)s]")
    add("--port", type=int, default=8000, help="0: any that is free [%(default)s]")
    add("--public-url", metavar="URL", help="as browsers see it, behind a proxy: https://labels.example.org")


def _serve(arguments: argparse.Namespace) -> int:
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


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    _labeler(parser)


def _token(arguments: argparse.Namespace) -> int:
    from labeling.store.project import Project

    print(Project.open(arguments.project).issue_token(arguments.labeler))
    return 0


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    _threshold(parser)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def _status(arguments: argparse.Namespace) -> int:
    from labeling.analysis.report import print_status, status_json
    from labeling.analysis.status import status
    from labeling.store.project import Project

    project = Project.open(arguments.project)
    found = status(project, threshold=arguments.threshold)
    if arguments.json:
        print(status_json(found))
    else:
        print_status(found)
    return 0


def _adjudicate_arguments(parser: argparse.ArgumentParser) -> None:
    _threshold(parser)
    add = parser.add_argument
    add("--labeler", metavar="NAME", help="who decides; without it, disputed items are listed")
    add("--plain", action="store_true", help="line by line, for dumb terminals and scripts")
    add("--item", type=int, metavar="N", help="decide this item and no other")
    add("--ranks", metavar="R,R,...", help='its final ranks, in the order in which the list shows: "1,2,F"')
    add("--note", default="", metavar="TEXT", help="why")
    add("--limit", type=int, default=20, metavar="N", help="list at most so many [%(default)s]")


def _adjudicate(arguments: argparse.Namespace) -> int:
    from labeling.store.project import Project

    with Project.open(arguments.project) as project:
        if arguments.item is not None or arguments.ranks is not None:
            _decide(project, arguments)
        elif arguments.labeler is not None:
            from labeling.sessions.adjudication import Adjudication

            with Adjudication(project, arguments.labeler, threshold=arguments.threshold) as adjudication:
                _work(adjudication, plain=arguments.plain)
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


def _simulate_arguments(parser: argparse.ArgumentParser) -> None:
    _labeler(parser)
    add = parser.add_argument
    add("--scorer", required=True, metavar="FILE.py:FUNCTION", help="what the labeler goes by")
    add("--error-rate", type=float, default=0.0, help="chance that a comparison is wrong [%(default)s]")
    add("--tie-width", type=float, default=0.0, help="scores no further apart look equal [%(default)s]")
    add("--max-items", type=int, metavar="N", help="stop after so many [when nothing is left]")
    add("--seed", type=int, default=0, help="of the errors [%(default)s]")


def _simulate(arguments: argparse.Namespace) -> int:
    from labeling.sessions.simulate import Script, simulate
    from labeling.store.project import Project
    from rlhf.data.scorers import load_scorer

    if not 0 <= arguments.error_rate <= 0.5:
        raise UserError("an error rate lies between 0 and 0.5", where="--error-rate", fix="Give another.")
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


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--to", type=Path, required=True, metavar="FOLDER", help="where the records and manifest.json go")
    add(
        "--shape",
        choices=["rankings", "pairs"],
        default="rankings",
        help="our records, or TRL's prompt/chosen/rejected rows [%(default)s]",
    )
    add(
        "--labels",
        choices=["consensus", "all"],
        default="consensus",
        help="one ranking an item, or every labeler's [%(default)s]",
    )
    add("--min-labels", type=int, default=1, metavar="N", help="leave out items with fewer [%(default)s]")
    add("--pseudonyms", action="store_true", help="do not name the labelers")


def _export(arguments: argparse.Namespace) -> int:
    from labeling.exchange.export import ExportOptions, export
    from labeling.store.project import Project
    from rlhf.runs.manifest import MANIFEST

    options = ExportOptions(
        shape=arguments.shape,
        labels=arguments.labels,
        min_labels=arguments.min_labels,
        pseudonyms=arguments.pseudonyms,
    )
    manifest = export(Project.open(arguments.project), arguments.to, options)
    path = arguments.to / MANIFEST
    print(f"export: {manifest.num_records:,} {manifest.shape} of {manifest.metrics['items']:,} items: {path}")
    print(f"next: make reward SET='reward.rankings=[{{path: {path}}}]'")
    return 0


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, help="rankings or pairs (docs/data-formats.md), or a table of judged pairs")
    add("--labeler", default="imported", metavar="NAME", help="of what names no annotator [%(default)s]")
    add("--prompt", metavar="TEMPLATE", help='for a table of pairs: "{instruction}\\n\\n{input}"')
    add("--first", metavar="COLUMN", help="its first answer")
    add("--second", metavar="COLUMN", help="its second answer")
    add("--judge", action="append", metavar="COLUMN", help="one labeler's judgements; give it again for more")
    add("--codes", default="1,0,2", metavar="A,T,B", help="first better, tie, second better [%(default)s]")
    add("--overlap", type=int, metavar="N", help="of a project that this makes [the number of labelers]")


def _import(arguments: argparse.Namespace) -> int:
    from labeling.exchange.creation import import_file

    import_file(arguments)
    return 0


def _labeler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labeler", required=True, metavar="NAME", help="who is at work")


def _threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold",
        type=_share,
        default=THRESHOLD,
        help="items whose labels agree less are disputed, from 0 to 1 [%(default)s]",
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:  # so is no NaN
        raise UserError(f"{text} is no threshold", where="--threshold", fix="Give a number from 0 to 1.")
    return value


COMMANDS: dict[str, Command] = {
    "create": Command("make a labeling project", _create_arguments, _create),
    "rank": Command("rank items: the labeler's screen (? in it lists the keys)", _rank_arguments, _rank),
    "serve": Command("rank in a browser: the same screen, by tokens", _serve_arguments, _serve),
    "token": Command("print a new token by which a browser knows a labeler", _token_arguments, _token),
    "status": Command("show progress, pace, agreement and disputed items", _status_arguments, _status),
    "adjudicate": Command(
        "list disputed items, or decide them on the screen", _adjudicate_arguments, _adjudicate
    ),
    "simulate": Command("let a scripted labeler rank", _simulate_arguments, _simulate),
    "export": Command("write the labels as training data, for `make reward`", _export_arguments, _export),
    "import": Command("enter rankings and pairs made elsewhere", _import_arguments, _import),
}

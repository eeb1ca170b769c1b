"""`create`, `export` and `import`: projects out of files, and labels into files and out of them.

Everything heavy is imported where it is used, so that `--help` and a labeler's first item come at once.
"""

import argparse
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.store.rules import LabelingRules
from rlhf.errors import UserError

if TYPE_CHECKING:
    from labeling.exchange.creation import Sampling


def create_arguments(parser: argparse.ArgumentParser) -> None:
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


def create_command(arguments: argparse.Namespace) -> int:
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


def _sampling(arguments: argparse.Namespace) -> "Sampling | None":
    from labeling.exchange.creation import Sampling

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


def export_arguments(parser: argparse.ArgumentParser) -> None:
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
    add(
        "--include-flagged",
        action="append",
        default=[],
        metavar="REASON",
        help="export what is flagged for this reason, too; `*` for anything; again for more [held back]",
    )


def export_command(arguments: argparse.Namespace) -> int:
    from labeling.exchange.export import ExportOptions, export
    from labeling.store.project import Project
    from rlhf.runs.manifest import MANIFEST

    options = ExportOptions(
        shape=arguments.shape,
        labels=arguments.labels,
        min_labels=arguments.min_labels,
        pseudonyms=arguments.pseudonyms,
        include_flagged=tuple(arguments.include_flagged),
    )
    manifest = export(Project.open(arguments.project), arguments.to, options)
    path = arguments.to / MANIFEST
    print(f"export: {manifest.num_records:,} {manifest.shape} of {manifest.metrics['items']:,} items: {path}")
    _print_left_out(manifest.metrics)
    print(f"next: {reward_command(path)}")
    return 0


def _print_left_out(metrics: Mapping[str, Any]) -> None:
    """What is not exported, and why; what is all the same."""
    from labeling.sanitize import sanitize_line

    if metrics["items_held_back"]:
        reasons = [f"{sanitize_line(why)} ({n:,})" for why, n in metrics["held_back_reasons"].items()]
        print(f"export: {metrics['items_held_back']:,} flagged items are held back: {', '.join(reasons)}")
        print("export: to export some on purpose: --include-flagged REASON, or '*' for all")
    if metrics.get("pairs_tied") or metrics.get("pairs_failed_both"):
        tied, failed = metrics["pairs_tied"], metrics["pairs_failed_both"]
        print(
            f"export: pairs with no better one are left out: {tied:,} ties, {failed:,} of two failed answers"
        )
    if metrics["items_flagged_included"]:
        print(f"export: {metrics['items_flagged_included']:,} flagged items are included, as you asked")


def reward_command(manifest: Path) -> str:
    """The command that trains on an export, quoted for the two shells that read it: the user's and make's.

    `SET` holds shell words, so a setting with a space in it needs quotes of its own inside.
    """
    value = str(manifest) if re.fullmatch(r"[\w./-]+", str(manifest)) else json.dumps(str(manifest))
    word = shlex.quote(f"reward.rankings=[{{path: {value}}}]")
    if set(word).isdisjoint('"$`\\'):
        return f'make reward SET="{word}"'
    return f"make reward SET={shlex.quote(word.replace('$', '$$'))}"  # make would take $ for a variable


def import_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, help="rankings or pairs (docs/data-formats.md), or a table of judged pairs")
    add("--labeler", default="imported", metavar="NAME", help="of what names no annotator [%(default)s]")
    add("--prompt", metavar="TEMPLATE", help='for a table of pairs: "{instruction}\\n\\n{input}"')
    add("--first", metavar="COLUMN", help="its first answer")
    add("--second", metavar="COLUMN", help="its second answer")
    add("--judge", action="append", metavar="COLUMN", help="one labeler's judgements; give it again for more")
    add("--codes", default="1,0,2", metavar="A,T,B", help="first better, tie, second better [%(default)s]")
    add("--overlap", type=int, metavar="N", help="of a project that this makes [the number of labelers]")


def import_command(arguments: argparse.Namespace) -> int:
    from labeling.exchange.creation import import_file

    import_file(arguments)
    return 0

"""`python -m labeling <command>`: demonstrations, samples, labels by scripts, constitutions, people."""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from labeling.commands import run as commands
from labeling.config import DemonstrationsSettings, LabelingSettings, RankingsSettings, SamplesSettings
from labeling.constitution.config import ConstitutionSettings
from labeling.constitution.stages import STAGES, Name, run
from rlhf.commands.ahead import check_ahead
from rlhf.commands.arguments import Sections, add_clean, command_parser, load
from rlhf.commands.process import run_command
from rlhf.data.scorer_code import scorer_details, scorer_fingerprint
from rlhf.data.sources import model_identity, source_fingerprints
from rlhf.errors import UserError
from rlhf.runs.files import sha256_file
from rlhf.runs.stage import StageRun, require
from rlhf.settings.groups import ModelSettings, RunSettings, Settings
from rlhf.settings.recipe import Recipe

RECIPE_COMMANDS = {
    "demonstrations": "continuations by the base model, cut after a sentence, for `make sft`",
    "samples": "completions by the SFT model, to be ranked",
    "rankings": "ranks of those samples by a scripted labeler, for `make reward`",
    "constitution": "both of the following, as far as the recipe has them",
    "revisions": "responses criticized and revised by written principles, for `make sft`",
    "preferences": "completions compared by written principles, for `make reward`",
}
COMMANDS = {**RECIPE_COMMANDS, **{name: command.summary for name, command in commands.COMMANDS.items()}}
GROUPS: Sections = {
    "demonstrations": DemonstrationsSettings,
    "samples": SamplesSettings,
    "rankings": RankingsSettings,
    **dict.fromkeys(("constitution", *STAGES), ConstitutionSettings),
}
USAGE = """\
usage: python -m labeling COMMAND [-h] --config FILE [--clean] [key.sub=value ...]
       python -m labeling COMMAND [-h] --project WHERE [options]"""

Group = TypeVar("Group", bound=Settings)


def main(argv: Sequence[str]) -> int:
    command, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    if command in commands.COMMANDS:
        return commands.run(command, rest)
    if command in COMMANDS:
        arguments = _parser(command).parse_intermixed_args(rest)
        recipe = load(arguments)
        check_ahead(recipe, command)
        return _RUN[command](recipe, clean=arguments.clean)
    if not command and {"-h", "--help"} & {*argv}:
        print(_help())
        return 0
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    raise UserError(
        f"unknown command `{command}`" if command else "no command is given",
        where="labeling",
        fix=f"Did you mean `{close[0]}`?" if close else f"Commands: {', '.join(COMMANDS)}.",
    )


def _help() -> str:
    """What there is to choose from; each command's own help lists its settings."""

    def listed(names: Iterable[str]) -> str:
        return "\n".join(f"  {name:15} {COMMANDS[name]}" for name in names)

    return (
        f"{USAGE}\n\nLabels for the other stages.\n\n"
        f"commands that take a recipe:\n{listed(RECIPE_COMMANDS)}\n\n"
        f"commands of a labeling project (docs/labeling.md):\n{listed(commands.COMMANDS)}\n\n"
        "The options and settings of one of them: python -m labeling COMMAND --help"
    )


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser of one command, whose help lists the settings that this command reads."""

    def sections() -> Sections:
        group = "constitution" if command in STAGES else command
        used: Sections = {f"labeling.{group}": GROUPS[command], "run": RunSettings}
        if command in ("demonstrations", "samples"):
            used["model"] = ModelSettings
        return used

    text = RECIPE_COMMANDS[command]
    parser = command_parser(f"labeling {command}", f"{text[0].upper()}{text[1:]}.", sections)
    add_clean(parser)
    return parser


def _demonstrations(recipe: Recipe, *, clean: bool) -> int:
    settings = _group(
        recipe, "demonstrations", cast(LabelingSettings, recipe.section("labeling")).demonstrations
    )
    inputs = source_fingerprints("prompts", settings.prompts, run_folder=recipe.run_folder)
    details: dict[str, str] = {}
    if recipe.model.path is not None:
        details["model"] = model_identity(recipe.model.path, recipe.model.revision)
    sections = ("labeling", "model", "run")
    stage = _open(recipe, "demonstrations", inputs, details=details, clean=clean, sections=sections)
    if stage is not None:
        from labeling.generation.sample import (
            make_demonstrations,  # torch and transformers load only when there is work
        )

        with stage:
            make_demonstrations(recipe, settings, stage)
    return 0


def _samples(recipe: Recipe, *, clean: bool) -> int:
    settings = _group(recipe, "samples", _section(recipe).samples)
    inputs = {"sft/model": require(recipe.run_folder, "sft").artifact_sha256}
    inputs |= source_fingerprints("prompts", settings.prompts, run_folder=recipe.run_folder)
    sections = ("labeling", "model", "run")
    stage = _open(recipe, "samples", inputs, clean=clean, sections=sections, reads=["sft"])
    if stage is not None:
        from labeling.generation.sample import make_samples

        with stage:
            make_samples(recipe, settings, stage)
    return 0


def _rankings(recipe: Recipe, *, clean: bool) -> int:
    settings = _group(recipe, "rankings", _section(recipe).rankings)
    samples = Path(settings.samples.replace("{run}", str(recipe.run_folder)))
    if not samples.is_file():
        raise UserError(
            "there is no such file",
            where=str(samples),
            fix="Run `make samples` first, or name a file of samples in `labeling.rankings.samples`.",
        )
    inputs = {"samples": sha256_file(samples), "scorer": scorer_fingerprint(settings.scorer)}
    details = scorer_details("scorer", settings.scorer)
    stage = _open(recipe, "rankings", inputs, details=details, clean=clean, sections=("labeling", "run"))
    if stage is not None:
        from labeling.generation.rankings import make_rankings

        with stage:
            make_rankings(recipe, settings, stage, samples=samples)
    return 0


def _constitution(recipe: Recipe, *, clean: bool, names: tuple[Name, ...] = STAGES) -> int:
    run(recipe, _group(recipe, "constitution", _section(recipe).constitution), names, clean=clean)
    return 0


def _section(recipe: Recipe) -> LabelingSettings:
    return cast(LabelingSettings, recipe.section("labeling"))


def _group(recipe: Recipe, name: str, group: Group | None) -> Group:
    """The command's own group of settings.

    Raises:
        UserError: the recipe has none.
    """
    if group is None:
        example = "tiny" if name == "constitution" else "stories"
        raise UserError(
            f"the recipe has no `labeling.{name}` group",
            where=str(recipe.path),
            fix=f"Add it, or choose a recipe that has it (configs/{example}/recipe.yaml).",
        )
    return group


def _open(
    recipe: Recipe,
    name: str,
    inputs: dict[str, str],
    *,
    clean: bool,
    sections: Sequence[str],
    details: Mapping[str, str] | None = None,
    reads: Sequence[str] = (),
) -> StageRun | None:
    """Open the stage of one command, which the other commands' settings do not make stale."""
    settings = _section(recipe)
    own = LabelingSettings.model_validate({name: getattr(settings, name)})
    narrowed = dataclasses.replace(recipe, sections={**recipe.sections, "labeling": own})
    return StageRun.open(
        recipe,
        name,
        inputs,
        details=details,
        reads=reads,
        clean=clean,
        sections=sections,
        counted=narrowed,
    )


_RUN: dict[str, Callable[..., int]] = {
    "demonstrations": _demonstrations,
    "samples": _samples,
    "rankings": _rankings,
    "constitution": _constitution,
    "revisions": partial(_constitution, names=("revisions",)),
    "preferences": partial(_constitution, names=("preferences",)),
}

if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))

"""`python -m ppo`: train the policy of a recipe."""

import argparse
import sys
from collections.abc import Sequence
from typing import cast

from ppo.config import PPOSettings
from rlhf.commands.ahead import check_ahead
from rlhf.commands.arguments import load, stage_arguments
from rlhf.commands.process import run_command
from rlhf.data.scorer_code import scorer_details, scorer_fingerprint
from rlhf.data.sources import source_fingerprints
from rlhf.environment import has_ranks, is_rank0
from rlhf.optional import silent
from rlhf.runs.derived import is_derived
from rlhf.runs.stage import StageRun, require
from rlhf.settings.recipe import Recipe

DESCRIPTION = "Stage 3: PPO of a LoRA policy on the SFT model, against the reward model."


def main(argv: Sequence[str]) -> int:
    arguments = stage_arguments("ppo", DESCRIPTION, argv, extra=_add_accept)
    recipe = load(arguments)
    check_ahead(recipe, "ppo")
    settings = cast(PPOSettings, recipe.section("ppo"))
    run = recipe.run_folder
    details: dict[str, str] = {}
    inputs = source_fingerprints("prompts", settings.prompts, run_folder=run)
    inputs["sft/model"] = require(run, "sft").artifact_sha256
    if settings.reward == "adapter":
        inputs["reward/model"] = require(run, "reward").artifact_sha256
    else:
        inputs["reward"] = scorer_fingerprint(settings.reward)
        details |= scorer_details("reward", settings.reward)
    if settings.evaluation.gold:
        inputs["gold"] = scorer_fingerprint(settings.evaluation.gold)
        details |= scorer_details("gold", settings.evaluation.gold)
    reads = [name for name in ("sft", "reward") if f"{name}/model" in inputs]
    accept = ("reward", "gold") if arguments.accept_scorer else ()
    stage = StageRun.open(
        recipe, "ppo", inputs, details=details, reads=reads, clean=arguments.clean, accept=accept
    )
    if stage is None:
        _merge_if_wanted(recipe, settings)
        return 0
    with silent():  # of what libraries print when they are imported
        from ppo.train import train  # torch and transformers load only when there is work

    with stage:
        train(recipe, settings, stage)
    return 0


def _add_accept(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-scorer",
        action="store_true",
        help="resume although the code of a scorer has changed since the stage began",
    )


def _merge_if_wanted(recipe: Recipe, settings: PPOSettings) -> None:
    """Merge the policy of a stage that is finished, if the recipe asks for it and it has not been done."""
    stage = require(recipe.run_folder, "ppo")
    if not settings.export_merged or is_derived(stage, "merged") or not is_rank0():
        return
    again = f"python -m ppo --config {stage.folder / 'config.yaml'} ppo.export_merged=true"
    if has_ranks():  # the base would be divided among them, and one of them needs it whole
        print(f"ppo: the policy is not merged yet. One process does that: {again}")
        return
    with silent():
        from ppo.merge import merge_published

    merge_published(recipe, settings, again=again)


if __name__ == "__main__":
    sys.exit(run_command(main))

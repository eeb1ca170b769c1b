"""`python -m reward`: train the reward model of a recipe; `python -m reward score`: score a file with one."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from reward.config import RewardSettings
from rlhf.commands.ahead import check_ahead
from rlhf.commands.arguments import load, stage_arguments
from rlhf.commands.process import run_command
from rlhf.data.scorer_code import scorer_details, scorer_fingerprint
from rlhf.data.sources import source_fingerprints
from rlhf.optional import silent
from rlhf.runs.stage import StageRun, require

DESCRIPTION = (
    "Stage 2: a reward model, learned from rankings as an adapter on the SFT model.\n"
    "To score a file with a published reward model: python -m reward score --help"
)


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] == "score":
        return _score(argv[1:])
    arguments = stage_arguments("reward", DESCRIPTION, argv)
    recipe = load(arguments)
    check_ahead(recipe, "reward")
    settings = cast(RewardSettings, recipe.section("reward"))
    inputs = {"sft/model": require(recipe.run_folder, "sft").artifact_sha256}
    inputs |= source_fingerprints("rankings", settings.rankings, run_folder=recipe.run_folder)
    details: dict[str, str] = {}
    if settings.gold:
        inputs["gold"] = scorer_fingerprint(settings.gold)
        details = scorer_details("gold", settings.gold)
    stage = StageRun.open(recipe, "reward", inputs, details=details, reads=["sft"], clean=arguments.clean)
    if stage is None:
        return 0
    with stage:
        with silent():  # of what libraries print when they are imported
            from reward.train import train  # torch and transformers load only when there is work

        train(recipe, settings, stage)
    return 0


def _score(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reward score",
        description="Add `score` (normalized) and `raw_score` to rows of prompt and completion(s).",
        allow_abbrev=False,
    )
    parser.add_argument("--model", type=Path, required=True, help="a folder runs/<name>/reward/model")
    parser.add_argument("--input", type=Path, required=True, help="the rows, .jsonl")
    parser.add_argument("--output", type=Path, required=True, help="where they go, with their scores")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="padded tokens scored together")
    parser.add_argument(
        "--over-length",
        choices=["error", "truncate_left"],
        default="error",
        help="what becomes of a row longer than the model was trained for",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    arguments = parser.parse_args(argv)
    from reward.score import ScoreOptions, score_file

    options = ScoreOptions(
        batch_tokens=arguments.batch_tokens,
        over_length=arguments.over_length,
        device=arguments.device,
        force=arguments.force,
    )
    score_file(arguments.model, arguments.input, arguments.output, options)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=lambda argv: argv[:1] != ["score"]))

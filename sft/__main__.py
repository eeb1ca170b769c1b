"""`python -m sft`: fine-tune the model of a recipe on its demonstrations."""

import sys
from collections.abc import Sequence
from typing import cast

from rlhf.commands.ahead import check_ahead
from rlhf.commands.arguments import load, stage_arguments
from rlhf.commands.process import run_command
from rlhf.optional import silent
from rlhf.runs.stage import StageRun
from sft.config import SFTSettings
from sft.inputs import stage_inputs

DESCRIPTION = "Stage 1: supervised fine-tuning; the loss is on completions only, their EOS included."


def main(argv: Sequence[str]) -> int:
    arguments = stage_arguments("sft", DESCRIPTION, argv)
    recipe = load(arguments)
    check_ahead(recipe, "sft")
    settings = cast(SFTSettings, recipe.section("sft"))
    stage = StageRun.open(recipe, "sft", stage_inputs(recipe, settings), clean=arguments.clean)
    if stage is None:
        return 0
    with silent():  # of what libraries print when they are imported
        from sft.train import train  # torch and transformers load only when there is work

    with stage:
        train(recipe, settings, stage)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

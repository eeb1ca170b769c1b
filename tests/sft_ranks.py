"""SFT on teams of real processes, forked from one that has imported all: `python -m tests.sft_ranks OUT`.

Each case leaves in OUT what came of it. The test that reads it is tests/invariant/test_sft_ranks.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rlhf.config import RunSettings
from rlhf.distributed import start_process, team
from tests.ranks import fork
from tests.unit.sft.demos import Log, poison, random_examples, sft_settings, small_start, trainer

TEAMS = {"one": (1, 0), "zero2": (2, 2), "zero3": (2, 3)}
"""Name → number of processes and ZeRO stage."""
POISONED = {1, 4}
"""Steps whose loss is not a number, though its gradient is, on the last rank alone."""


def lose(out: Path, name: str) -> None:
    """Train with poisoned losses."""
    settings = sft_settings(micro_batch_size=3)
    start_process(RunSettings(device="cpu"), max_grad_norm=settings.max_grad_norm)
    begin, log = small_start(out, settings), Log()
    built = trainer(out / f"lose-{name}", settings, random_examples(21), begin=begin, log=log)
    if team().rank == team().size - 1:
        poison(built, POISONED, gradient=False)
    built.train()
    model: Any = built.trained_model()
    if team().is_first:
        weights = {key: value.detach().clone() for key, value in model.named_parameters()}
        save_file(weights, out / f"lose-{name}.safetensors")
        figures = {"skipped": built.guard.skipped_steps, "rows": log.rows}
        (out / f"lose-{name}.json").write_text(json.dumps(figures))


def main(out: Path) -> None:
    small_start(out, sft_settings())
    for name, (size, zero) in TEAMS.items():
        fork(size, zero, lambda name=name: lose(out, name))  # type: ignore[misc]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]))

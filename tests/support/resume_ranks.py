"""SFT on one process and on two, stopped and resumed: `python -m tests.support.resume_ranks OUT [CASE ...]`.

Each case of `CASES` fine-tunes a small model, from the beginning or from the checkpoint of another, and
leaves in OUT what came out of it. The test that reads it is tests/invariant/test_resume_ranks.py.
"""

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from rlhf.parallel.deepspeed.gather import gathered
from rlhf.parallel.deepspeed.sharded import assemble
from rlhf.parallel.start import start_process
from rlhf.parallel.world import world
from rlhf.runs.rank_checkpoints import newest_checkpoint
from rlhf.settings.groups import RunSettings
from sft.resumable import Trainer
from tests.support.teams import Case, fork, leave, preload, switch_reduction_off
from tests.unit.sft.demos import Log, poison, random_examples, sft_settings, small_start, trainer

CASES = {
    "one": Case(1, 0),
    "zero1": Case(2, 1),
    "zero2": Case(2, 2),
    "zero3": Case(2, 3),
    "unsynchronized": Case(2, 2),
    "zero2-zero2": Case(2, 2, origin="zero2"),
    "zero3-zero3": Case(2, 3, origin="zero3"),
    "zero2-one": Case(1, 0, origin="zero2"),
    "one-zero2": Case(2, 2, origin="one"),
    "one-rank-fails": Case(2, 3),
}
CUT = 3
"""The step after which a case leaves its checkpoint."""


def train(out: Path, case: str) -> None:
    """Two epochs of 21 examples in steps of 8: two processes need a dummy row in the last step of each."""
    epochs = 1 if case == "one-rank-fails" else 2
    settings = sft_settings(
        num_epochs=epochs, micro_batch_size=3, checkpoint_every_steps=CUT, keep_checkpoints=9
    )
    start_process(RunSettings(device="cpu"), max_grad_norm=settings.max_grad_norm)
    begin, log, folder, origin = small_start(out, settings), Log(), out / f"sft-{case}", CASES[case].origin
    built: Trainer = trainer(folder, settings, random_examples(21), begin=begin, log=log, log_every_steps=4)
    with gathered(built.named.values()):
        before = {name: value.detach().clone() for name, value in built.named.items()}
    if origin is not None:
        found = newest_checkpoint(out / f"sft-{origin}-cut")
        assert found is not None
        built.resume_from(found)
    if case == "unsynchronized":
        switch_reduction_off()
    if case == "one-rank-fails" and world().rank:
        poison(built, {2})
    built.train()
    engine = built.engine
    optimizer = None if engine is None else type(engine._engine.optimizer).__name__
    trained: Any = built.trained_model()
    assemble(trained)
    if world().is_rank0 and origin is None:
        cut = f"checkpoints/step-{CUT:06d}"
        shutil.copytree(folder / cut, out / f"sft-{case}-cut" / cut)
    rows = [[step, {k: v for k, v in row.items() if "per_second" not in k}] for step, row in log.rows]
    leave(
        out,
        f"sft-{case}",
        before,
        {f"weights.{name}": value for name, value in trained.named_parameters() if name in before},
        {"engine": optimizer, "rows": rows, "skipped": built.guard.skipped_steps},
    )


def main(out: Path, names: list[str]) -> None:
    """Work through the named cases, or all."""
    preload()
    small_start(out, sft_settings())
    for name in names or list(CASES):
        size, zero, _ = CASES[name]
        fork(size, zero, functools.partial(train, out, name))


if __name__ == "__main__":
    # Not in torch's deterministic mode, as no user's run is: it fills all new memory, also DeepSpeed's
    # buckets of 2 GB, which here hold some kilobytes.
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])

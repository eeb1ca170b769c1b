"""SFT on teams of real processes, as tests.ranks has them: `python -m tests.sft_ranks OUT`.

Each case trains the small model and leaves in OUT its weights before and after, its figures, and what took the
steps. The test that reads it is tests/invariant/test_sft_ranks.py.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rlhf import checkpoints
from rlhf.config import RunSettings
from rlhf.distributed import start_process, team
from sft.trainer import Trainer
from tests.ranks import fork, switch_reduction_off
from tests.unit.sft.demos import Log, poison, random_examples, sft_settings, small_start, trainer

EXAMPLES = random_examples(21)
"""An odd number: the last step of an epoch has one row too few for two processes."""
NUM_STEPS = 6


def train(
    out: Path,
    label: str,
    *,
    method: str = "full",
    goes_on: bool = False,
    act: Callable[[Trainer], None] = lambda trained: None,
) -> None:
    """Train for two epochs in steps of 8, from the beginning or from the newest checkpoint of `label`."""
    settings = sft_settings(method=method, micro_batch_size=3, checkpoint_every_steps=1, keep_checkpoints=9)
    start_process(RunSettings(device="cpu"), max_grad_norm=settings.max_grad_norm)
    log = Log()
    built = trainer(
        out / label, settings, EXAMPLES, begin=small_start(out, settings), log=log, log_every_steps=4
    )
    if goes_on:
        found = checkpoints.latest(out / label)
        assert found is not None
        built.go_on_from(found)
    act(built)
    before = {f"before.{name}": value.detach().clone() for name, value in built.named.items()}
    names = list(built.named)
    built.train()
    engine = built._engine
    figures = {
        "rows": log.rows,
        "optimizer": None if engine is None else type(engine._engine.optimizer).__name__,
        "skipped": built.guard.skipped_steps,
    }
    model: Any = built.trained_model()
    after = dict(model.named_parameters())
    if team().is_first:
        weights = {f"after.{name}": after[name].detach().clone().contiguous() for name in names}
        save_file(before | weights, out / f"{label}.safetensors")
        (out / f"{label}.json").write_text(json.dumps(figures))


def cut_after(out: Path, label: str, step: int) -> None:
    """Leave the checkpoints as a process leaves them that dies right after the one of `step`."""
    for path in (out / label / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def main(out: Path) -> None:
    """All cases: how many processes and which ZeRO stage, then what is done."""
    small_start(out, sft_settings())
    for name, size, zero in (("one", 1, 0), ("zero1", 2, 1), ("zero2", 2, 2), ("zero3", 2, 3)):
        fork(size, zero, lambda name=name: train(out, name))  # type: ignore[misc]
    fork(2, 2, lambda: (switch_reduction_off(), train(out, "unsynchronized"))[1])
    fork(2, 2, lambda: train(out, "lora-zero2", method="lora"))
    fork(1, 0, lambda: train(out, "lora-one", method="lora"))
    for name, sizes in (("two-two", (2, 2)), ("two-one", (2, 1)), ("one-two", (1, 2))):
        fork(sizes[0], 2 * (sizes[0] > 1), lambda name=name: train(out, name))  # type: ignore[misc]
        cut_after(out, name, 3)
        fork(sizes[1], 2 * (sizes[1] > 1), lambda name=name: train(out, name, goes_on=True))  # type: ignore[misc]
    for stage in (2, 3):
        bad: Callable[[Trainer], None] = lambda trained: poison(trained, {2}) if team().rank else None  # noqa: E731
        fork(2, stage, lambda stage=stage, bad=bad: train(out, f"nan-zero{stage}", act=bad))  # type: ignore[misc]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]))

"""SFT on teams of real processes, as tests.ranks has them: `python -m tests.sft_ranks OUT`.

Each case trains the small model and leaves in OUT its weights before and after, its figures, and what took
the steps. The test that reads it is tests/invariant/test_sft_ranks.py.
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
    settings = sft_settings(method=method, micro_batch_size=3, checkpoint_every_steps=3)
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


def cases(out: Path) -> dict[str, list[tuple[int, int, Callable[[], None]]]]:
    """Name → the teams that work one after the other: processes, ZeRO stage, and what every rank does."""

    def plain(name: str, **options: Any) -> Callable[[], None]:
        return lambda: train(out, name, **options)

    def unsynchronized() -> None:
        switch_reduction_off()
        train(out, "unsynchronized")

    def one_rank_fails(trained: Trainer) -> None:
        if team().rank:
            poison(trained, {2})

    found: dict[str, list[tuple[int, int, Callable[[], None]]]] = {
        "one": [(1, 0, plain("one"))],
        "lora-one": [(1, 0, plain("lora-one", method="lora"))],
        "lora-zero2": [(2, 2, plain("lora-zero2", method="lora"))],
        "unsynchronized": [(2, 2, unsynchronized)],
    }
    for stage in (1, 2, 3):
        found[f"zero{stage}"] = [(2, stage, plain(f"zero{stage}"))]
    for name, first, second in (
        ("two-two", (2, 3), (2, 3)),
        ("two-one", (2, 2), (1, 0)),
        ("one-two", (1, 0), (2, 2)),
    ):
        cut = (1, 0, lambda name=name: cut_after(out, name, 3))
        found[name] = [(*first, plain(name)), cut, (*second, plain(name, goes_on=True))]
    found["one-rank-fails"] = [(2, 2, plain("one-rank-fails", act=one_rank_fails))]
    return found


def main(out: Path, names: list[str]) -> None:
    """Work through the named cases, or all."""
    small_start(out, sft_settings())
    all_cases = cases(out)
    for name in names or all_cases:
        for size, zero, work in all_cases[name]:
            fork(size, zero, work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]), sys.argv[2:])

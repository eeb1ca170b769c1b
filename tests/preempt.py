"""`python -m tests.preempt`: the seconds from SIGTERM to the end of a PPO run, at random moments.

The signal goes to the launcher (to the stage itself on one process), in turn while the run starts, samples,
trains, measures the policy and saves. Each run goes on where the one before was ended, and every one of them
must end with status 75 and leave the state after the last finished iteration.
"""

import argparse
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import EXIT_PREEMPTED
from rlhf.runs import checkpoints
from rlhf.runs.metrics import read_metrics
from tests.soak import Event, Process
from tests.support.preempt_child import WATCHED

PHASES = ("starting", *WATCHED)
_START_SECONDS = 8.0
_ENDLESS = ("ppo.num_iterations=100000", "ppo.evaluation.every_iterations=1")


def command(folder: Path, config: str, settings: Sequence[str], *, num_processes: int) -> list[str]:
    """How a PPO run is started that writes its phases down."""
    launcher = ["launch", "--gpus", str(num_processes), "--zero", "2", "ppo"]
    overrides = [f"run.folder={folder}", "run.name=run", *_ENDLESS, *settings]
    started_by = launcher if num_processes > 1 else ["rank"]
    return [sys.executable, "-m", "tests.support.preempt_child", *started_by, "--config", config, *overrides]


def wait(process: Process, phase: str, moment: random.Random) -> None:
    """Wait for a random moment of `phase`: of its second time, which takes as long as the first."""
    if phase == "starting":
        time.sleep(moment.random() * _START_SECONDS)
        return
    first = _begun(process, phase, 1)
    begun = time.monotonic()
    while process.phase(first.process) == phase:
        time.sleep(0.01)
    lasts = time.monotonic() - begun
    _begun(process, phase, 2)
    time.sleep(moment.random() * lasts)


def _begun(process: Process, phase: str, count: int) -> Event:
    event = process.wait_for(phase, count)
    assert event is not None, f"the run ended by itself: see {process.folder / 'log'}"
    return event


def end(process: Process) -> tuple[int, float]:
    """Send SIGTERM; the exit status, and the seconds until then."""
    sent = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    return process.end(), time.monotonic() - sent


def is_saved(stage: Path) -> bool:
    """Whether the newest checkpoint is of the last iteration in the metrics, or of the one before it.

    An iteration is logged a moment before the state after it is held in memory.
    """
    rows, found = read_metrics(stage / "metrics.jsonl"), checkpoints.latest(stage)
    last = rows[-1]["step"] if rows else 0
    return (0 if found is None else found.step) >= last - 1


def prepare(folder: Path, config: str, settings: Sequence[str], finished: Path | None) -> None:
    """Give the run an SFT and a reward model: those of a finished run, or new ones."""
    for stage in ("sft", "reward"):
        if finished is not None:
            shutil.copytree(finished / stage, folder / "run" / stage)
            continue
        words = [sys.executable, "-m", stage, "--config", config, f"run.folder={folder}", "run.name=run"]
        subprocess.run([*words, *settings], check=True, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str]) -> int:
    """Send the signals that the command line asks for; 0 if every run was saved and ended with 75."""
    arguments = _parser().parse_args(argv)
    moment, seconds, failures = random.Random(arguments.seed), list[float](), 0
    with tempfile.TemporaryDirectory(prefix="preempt-") as name:
        folder = Path(name)
        prepare(folder, arguments.config, arguments.settings, arguments.finished)
        words = command(folder, arguments.config, arguments.settings, num_processes=arguments.processes)
        for number in range(arguments.signals):
            phase, process = PHASES[number % len(PHASES)], Process(words, folder)
            wait(process, phase, moment)
            status, took = end(process)
            saved = is_saved(folder / "run" / "ppo")
            seconds.append(took)
            failures += status != EXIT_PREEMPTED or not saved
            print(f"{phase}: {took:.1f} s, status {status}{'' if saved else ', not saved'}", flush=True)
            if arguments.keep_log:
                shutil.copy(folder / "log", arguments.keep_log)
    print(
        f"{len(seconds)} signals: median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s, "
        f"{failures} not saved or of another status than {EXIT_PREEMPTED}"
    )
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.preempt", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--config", default="configs/tiny/recipe.yaml", help="a recipe with all stages")
    parser.add_argument("--finished", type=Path, help="a run of it whose SFT and reward models are taken")
    parser.add_argument("--processes", type=int, default=1, help="under ZeRO-2 if there are several")
    parser.add_argument("--signals", type=int, default=10, help="how many, to the phases in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep-log", type=Path, help="a file for what the runs have said")
    parser.add_argument("settings", nargs="*", help="more settings of the run")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`make soak`: PPO killed again and again and started again, against one that was left alone.

The blows are aimed: so many while it saves, samples and trains, each at a random moment of that phase. In the
end weights, metrics and samples must be those of the other run, bitwise, and the W&B run one run.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.runs.metrics import read_metrics
from rlhf.runs.stage import require
from tests.support.wandb_offline import merge_steps, read_offline_run

PHASES = ("saving", "sampling", "training")
_HANG_SECONDS = 900.0


@dataclass(frozen=True)
class Event:
    """The beginning or the end of a phase, as the child wrote it down."""

    process: int
    rank: int
    phase: str
    begins: bool


@dataclass
class Process:
    """A PPO process under watch, and how its events have been read so far."""

    command: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.events: list[Event] = []
        self._file = self.folder / "events"
        self._file.write_bytes(b"")
        self._log = (self.folder / "log").open("ab")
        self.popen = subprocess.Popen(
            self.command,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {"SOAK_EVENTS": str(self._file)} | self.environment,
            start_new_session=True,
        )

    def read(self) -> list[Event]:
        """All events so far."""
        for line in self._file.read_text().splitlines()[len(self.events) :]:
            process, rank, phase, edge = line.split()
            self.events.append(Event(int(process), int(rank), phase, edge == "begin"))
        return self.events

    def wait_for(self, phase: str, count: int, *, rank: int = 0) -> Event | None:
        """The event with which a rank begins the phase the `count`-th time; None if it ends before."""
        until = time.monotonic() + _HANG_SECONDS
        while time.monotonic() < until:
            ended = self.popen.poll() is not None
            begun = (event for event in self.read() if event.begins and event.rank == rank)
            found = [event for event in begun if event.phase == phase]
            if len(found) >= count:
                return found[count - 1]
            if ended:
                return None
            time.sleep(0.002)
        raise AssertionError(f"{phase} did not begin within {_HANG_SECONDS} s")

    def phase(self, struck: int) -> str | None:
        """The phase that was under way when a process ended: begun and not ended, the innermost."""
        open_phases: list[str] = []
        for event in self.read():
            if event.process != struck:
                continue
            if event.begins:
                open_phases.append(event.phase)
            elif event.phase in open_phases:
                open_phases.remove(event.phase)
        return open_phases[-1] if open_phases else None

    def end(self) -> int:
        """Wait for the end; the exit status. No process of its session is left."""
        try:
            status = self.popen.wait(_HANG_SECONDS)
        finally:
            kill_session(self.popen.pid)
            self._log.close()
        return status


def kill_session(leader: int) -> None:
    """Kill -9 a launcher with all that it has launched."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


class Soak:
    """Two runs in one folder, `straight` and `killed`, from the same SFT and reward models."""

    def __init__(
        self, folder: Path, config: str, settings: Sequence[str], *, seed: int, num_processes: int = 1
    ) -> None:
        self.folder, self.config, self.settings = folder, config, list(settings)
        self.num_processes = num_processes
        self.random = random.Random(seed)
        self.seconds: dict[str, float] = {}
        """Phase → how long it takes, by which a blow is timed."""
        self.blows: Counter[str] = Counter()
        """Phase → blows that fell in it; `between` for the rest."""
        self.statuses: Counter[int] = Counter()

    def command(self, stage: str, name: str) -> list[str]:
        launcher = list[str]()
        if stage == "ppo" and self.num_processes > 1:
            launcher = ["accelerate.commands.launch", "--config_file=configs/accelerate/zero2.yaml"]
            launcher += [f"--num_processes={self.num_processes}", "--main_process_port=0", "-m"]
        module = "tests.support.soak_child" if stage == "ppo" else stage
        overrides = [f"run.folder={self.folder}", f"run.name={name}", *self.settings]
        return [sys.executable, "-m", *launcher, module, "--config", self.config, *overrides]

    def make_models(self) -> None:
        """Make the SFT and the reward model of both runs."""
        for stage in ("sft", "reward"):
            subprocess.run(self.command(stage, "straight"), check=True, stdout=subprocess.DEVNULL)
            shutil.copytree(self.folder / "straight" / stage, self.folder / "killed" / stage)

    def run_straight(self) -> None:
        """Let one run go through, and see how long its phases take."""
        process = Process(self.command("ppo", "straight"), self.folder)
        begun: dict[str, float] = {}
        seen = 0
        while process.popen.poll() is None:
            for event in process.read()[seen:]:
                if event.begins:
                    begun[event.phase] = time.monotonic()
                elif event.phase in begun:
                    self.seconds[event.phase] = time.monotonic() - begun[event.phase]
            seen = len(process.events)
            time.sleep(0.002)
        assert process.end() == 0, f"the uninterrupted run failed: see {self.folder / 'log'}"

    def strike(self, phase: str, number: int = signal.SIGKILL) -> bool:
        """Start the run, send it a signal in the middle of `phase`; whether it was still running."""
        process = Process(self.command("ppo", "killed"), self.folder)
        rank = 0 if phase == "saving" else self.random.randrange(self.num_processes)
        event = process.wait_for(phase, self.random.choice((1, 2)), rank=rank)
        if event is None:
            assert process.end() == 0, f"the run failed by itself: see {self.folder / 'log'}"
            return False
        time.sleep(self.random.random() * self.seconds.get(phase, 0.05))
        if process.popen.poll() is None:
            os.kill(event.process, number)
        self.statuses[process.end()] += 1
        self.blows[process.phase(event.process) or "between"] += 1
        return True

    def finish(self) -> None:
        """Start the run a last time and let it come to its end."""
        process = Process(self.command("ppo", "killed"), self.folder)
        assert process.end() == 0, f"the run did not finish: see {self.folder / 'log'}"

    def differences(self) -> list[str]:
        """In what the killed run differs from the one that was left alone."""
        straight, killed = self.folder / "straight" / "ppo", self.folder / "killed" / "ppo"
        found = [
            name
            for name in ("model/adapter_model.safetensors",)
            if _sha256(straight / name) != _sha256(killed / name)
        ]
        found += ["metrics"] if _untimed(straight) != _untimed(killed) else []
        tables = [
            {path.name: path.read_bytes() for path in (each / "samples").iterdir()}
            for each in (straight, killed)
        ]
        found += ["samples"] if tables[0] != tables[1] else []
        metrics = [require(each.parent, "ppo").metrics for each in (straight, killed)]
        return found + (["final figures"] if metrics[0] != metrics[1] else [])

    def wandb_problems(self) -> list[str]:
        """What is wrong with the killed run in W&B: it must be one, with every line of the metrics once."""
        folder = self.folder / "killed" / "ppo"
        run = read_offline_run(folder)
        steps = [row["step"] for row in run.history]
        found = [] if steps == sorted(set(steps)) else [f"steps {steps}"]
        if run.history != merge_steps(read_metrics(folder / "metrics.jsonl")):
            found.append("history differs from metrics.jsonl")
        return found + ([] if run.id == (folder / "wandb_id").read_text().strip() else ["another run id"])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _untimed(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.endswith("_seconds")} for row in rows]


def main(argv: Sequence[str]) -> int:
    """Run the soak that the command line asks for; 0 if nothing differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--config", default="tests/integration/micro.yaml", help="a recipe with all stages")
    parser.add_argument("--kills", type=int, default=20, help="blows in all")
    parser.add_argument("--each", type=int, default=5, help="blows in each phase, at least")
    parser.add_argument(
        "--processes", type=int, default=1, help="of the run, under ZeRO-2 if there are several"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("settings", nargs="*", help="more settings of the run")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    many = [f"ppo.num_iterations={3 * arguments.kills // 2 + 4}", "ppo.checkpoint_every_iterations=1"]
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        soak = Soak(
            Path(name),
            arguments.config,
            [*many, *arguments.settings],
            seed=arguments.seed,
            num_processes=arguments.processes,
        )
        soak.make_models()
        soak.run_straight()
        print(f"the uninterrupted run: {time.monotonic() - started:.0f} s", flush=True)
        while soak.blows.total() < arguments.kills or min(soak.blows[p] for p in PHASES) < arguments.each:
            phase = min(PHASES, key=lambda phase: (soak.blows[phase], soak.random.random()))
            assert soak.strike(phase), "the run finished before all blows had fallen: more ppo.num_iterations"
            print(f"blow {soak.blows.total()}: {dict(soak.blows)}", flush=True)
        soak.finish()
        problems = [*soak.differences(), *soak.wandb_problems()]
    print(f"{soak.blows.total()} × kill -9: {dict(soak.blows)}, {time.monotonic() - started:.0f} s")
    print(
        f"differs: {', '.join(problems)}" if problems else "weights, metrics and samples are bitwise the same"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

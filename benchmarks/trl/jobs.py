"""What a racer's process is told, and what it answers: two JSON files."""

from pathlib import Path

from benchmarks.memory import Memory
from benchmarks.workloads import Layers
from rlhf.runs.manifest import JsonFile


class Job(JsonFile):
    """One start of one racer."""

    racer: str
    """What the tables call it."""
    recipe: str
    """Our recipe: both racers take their settings from it."""
    overrides: list[str]
    run_folder: str
    """Holds `sft/model`; for PPO also `reward/model` and the peer's prompts, for rewards the groups."""
    output: str
    """A folder for whatever the racer leaves: metrics, snapshots."""
    seed: int
    threads: int
    device: str = "cpu"
    layers: Layers = "all layers"
    stops_at_eos: bool = True
    num_warmup_laps: int = 1
    """First laps that are run and not counted."""
    max_laps: int = 0
    """Optimizer steps of reward training at most; 0 takes all of the recipe's."""
    snapshot_every: int = 0
    """Laps between two snapshots of the policy; 0 takes none."""


class Lap(JsonFile):
    """One iteration of PPO, or one optimizer step of reward training."""

    wall_seconds: float
    cpu_seconds: float
    """Of all threads of the racer's process."""
    optimizer_steps: int
    parts: dict[str, float] = {}
    """Wall-clock seconds by part of the iteration, where they were measured."""


class Snapshot(JsonFile):
    """The policy's adapter after an iteration, and what it had cost by then."""

    iteration: int
    num_samples: int
    wall_seconds: float
    cpu_seconds: float
    folder: str


class Result(JsonFile):
    """What a racer measured of itself."""

    racer: str
    laps: list[Lap]
    num_warmup_laps: int
    memory: Memory
    threads: int
    device: str
    num_base_parameters: int
    trainable_parameters: dict[str, int]
    """Trainable numbers by what they belong to."""
    versions: dict[str, str]
    response_tokens: list[int] = []
    """Length of every response that was sampled, its EOS included."""
    num_ended: int = 0
    """Responses that ended with EOS."""
    figures: dict[str, float] = {}
    """Held-out metrics of a reward model."""
    snapshots: list[Snapshot] = []

    @property
    def counted(self) -> list[Lap]:
        """The laps after warming up."""
        return self.laps[self.num_warmup_laps :]

    @property
    def wall_seconds_per_lap(self) -> float:
        return sum(lap.wall_seconds for lap in self.counted) / len(self.counted)

    @property
    def cpu_seconds_per_lap(self) -> float:
        return sum(lap.cpu_seconds for lap in self.counted) / len(self.counted)


class CurvePoint(JsonFile):
    """A policy of the learning race, judged."""

    iteration: int
    num_samples: int
    wall_seconds: float
    cpu_seconds: float
    gold: float
    """Mean gold score of responses to the held-out prompts."""
    kl_nats: float
    """KL(policy ‖ reference) in nats per response: mean summed k1 over the same responses."""
    figures: dict[str, float]
    """Every metric that the evaluator has of these responses."""
    golds: list[float] = []
    """Gold score of the response to every held-out prompt, in the same order at every point."""
    kls_nats: list[float] = []
    """Summed k1 of the same responses: their mean is `kl_nats`."""


class Curve(JsonFile):
    """How one racer learned under one seed."""

    racer: str
    seed: int
    num_prompts: int
    points: list[CurvePoint]


def prompt_ids_path(run_folder: Path, seed: int) -> Path:
    """The peer's training prompts under a seed, which decides which ones are held out."""
    return run_folder / "peer" / f"prompts-{seed}.json"

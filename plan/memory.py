"""What a stage needs, phase by phase and row by row, and what ZeRO leaves of it on one device."""

from collections import Counter
from dataclasses import dataclass, field

from plan.ledger import ACTIVATIONS, GRADIENTS, KV_CACHE, LOGITS, TRUNK, Bytes, Profile
from rlhf.parallel.deepspeed.setup import LARGEST_BUCKET

WEIGHTS, GATHERED, ADAPTERS, OPTIMIZER = "weights", "gathered (ZeRO-3)", "adapters", "optimizer"
ROWS = (WEIGHTS, GATHERED, ADAPTERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, KV_CACHE, LOGITS, TRUNK)
"""In the order of the table."""

_ADAM = 8
"""Bytes of AdamW's two moments, in fp32, for a trained parameter."""
_MASTER = 4
"""Bytes of the fp32 copy of every trained parameter that DeepSpeed steps on."""


@dataclass(frozen=True)
class Devices:
    """How many devices share a stage, how, and how much memory each has."""

    num: int = 1
    zero: int = 0
    """ZeRO stage: 1 shards the optimizer's state, 2 also gradients, 3 also parameters (1910.02054)."""
    memory_bytes: int | None = None
    on_cuda: bool = False

    def share(self, amount: int, *, from_zero: int) -> int:
        """What one device keeps of an amount that is sharded from ZeRO stage `from_zero` on."""
        return -(-amount // self.num) if self.zero >= from_zero else amount


@dataclass(frozen=True)
class Resident:
    """What stays in memory through all phases of a stage."""

    weights: int
    largest_part: int
    """Bytes of the largest part of the weights that ZeRO-3 gathers at a time."""
    adapters: int = 0
    """Parameters of adapters and heads, in fp32; for full training, none."""
    trained: int = 0
    """Parameters with gradients, in fp32."""
    shardable: bool = True
    """Whether ZeRO-3 can shard the weights; packed ones stay whole."""

    @property
    def gradients(self) -> int:
        return 4 * self.trained

    def bytes(self, devices: Devices) -> Bytes:
        """The rows that one device holds."""
        rows: Bytes = Counter({WEIGHTS: self.weights})
        if self.shardable:
            rows[WEIGHTS] = devices.share(self.weights, from_zero=3)
            if rows[WEIGHTS] < self.weights:
                rows[GATHERED] = min(2 * self.largest_part, self.weights)  # one is fetched ahead
        rows[ADAPTERS] = devices.share(4 * self.adapters, from_zero=3)
        state = _ADAM + (_MASTER if devices.zero else 0)
        rows[OPTIMIZER] = devices.share(state * self.trained, from_zero=1)
        return rows


@dataclass(frozen=True)
class Phase:
    """One part of a stage, and the rows of one device at its peak."""

    name: str
    bytes: Bytes

    @property
    def total(self) -> int:
        return self.bytes.total()


@dataclass(frozen=True)
class StagePlan:
    """A stage's phases. Its peak is the highest of them: they come one after another."""

    stage: str
    phases: tuple[Phase, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)


def phase(
    name: str, resident: Resident, profile: Profile, devices: Devices, *, extra: Bytes | None = None
) -> Phase:
    """The highest sum of what is resident and what any section of `profile` needs on top of it."""
    always = resident.bytes(devices) + Counter(extra or {})
    needs: list[Bytes] = []
    for section in profile.values():
        rows = Counter(section)
        if rows[GRADIENTS]:
            bucket = 4 * min(resident.trained, LARGEST_BUCKET) if devices.zero else 0
            rows[GRADIENTS] = devices.share(rows[GRADIENTS], from_zero=2) + bucket
        needs.append(always + rows)
    return Phase(name, max(needs, key=lambda rows: rows.total()))

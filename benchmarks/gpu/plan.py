"""What is measured on a GPU: shapes, workloads, and the cases of every part, each for a process of its own.

Nothing here loads a library: a plan is a set of numbers.
"""

from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.workloads import Layers, PPOWorkload, Shape
from rlhf.runs.manifest import JsonFile
from rlhf.settings.groups import Precision

PARTS = ("correctness", "decode", "race", "memory-7b", "largest", "iteration")
Status = Literal["done", "failed", "out of memory", "out of time", "left out"]


class LlamaShape(Shape):
    """A Llama model of a size that is known, so that what it must read and hold can be counted."""

    @property
    def kv_width(self) -> int:
        """Numbers in the keys of one token in one layer."""
        return self.hidden_size // self.num_heads * self.num_kv_heads

    @property
    def num_step_parameters(self) -> int:
        """Parameters that a decoding step reads: all but the embedding, of which it reads a row a token."""
        attention = 2 * self.hidden_size * (self.hidden_size + self.kv_width)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.num_layers * layer + self.hidden_size + self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        return self.num_step_parameters + self.vocab_size * self.hidden_size

    def kv_bytes_per_token(self, bytes_per_number: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.kv_width * bytes_per_number


class Case(JsonFile):
    """One measurement, in a process of its own."""

    part: str
    name: str
    device: str
    seed: int
    shape: LlamaShape
    workload: PPOWorkload
    precision: Precision = "bf16"
    layers: Layers = "all layers"
    gradient_checkpointing: bool = False
    num_warmup_laps: int = 0
    """First iterations that are run and not counted."""
    num_laps: int = 1
    """Counted iterations, or repetitions of a decoding."""
    batches: list[int] = []
    """Batch sizes of the part `decode`, ascending."""
    num_rounds: int = 1
    """Starts of every racer."""
    threads: int = 1
    build: str = "build/benchmarks"
    """Working folder of the race."""
    ladder: str = ""
    """Cases of one ladder ascend: after the first that does not end well the others are left out."""


class Answer(JsonFile):
    """What a case's process leaves."""

    status: Status
    error: str | None = None
    result: dict[str, Any] = {}


class Outcome(Answer):
    """A case, and what became of it."""

    part: str
    name: str
    seconds: float
    """Wall-clock time of the process, from its start to its end."""


def shape(
    name: str, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int = 32_000
) -> LlamaShape:
    """A shape by its numbers, in the order of a model card."""
    return LlamaShape(
        name=name,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        max_length=4096,
    )


TOYS = (shape("toy", 32, 2, 2, 1, 64, 300), shape("toy, twice", 64, 4, 4, 2, 128, 300))
SMALL = shape("110M", 768, 12, 12, 4, 2048)
ONE_B = shape("1B", 2048, 22, 32, 4, 5632)
SEVEN_B = shape("7B", 4096, 32, 32, 32, 11_008)
LADDER = (
    SEVEN_B,
    shape("13B", 5120, 40, 40, 40, 13_824),
    shape("20B", 6144, 48, 48, 8, 16_384, 92_544),
    shape("34B", 8192, 48, 64, 8, 22_016),
    shape("70B", 8192, 80, 64, 8, 28_672),
)
"""Shapes of published models of these sizes (1B: TinyLlama, 7B, 13B, 70B: Llama 2, 20B: InternLM2, 34B: Code
Llama), all with an output head of their own."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8", "nf4")


def plan(parts: Sequence[str], *, toy: bool, **common: Any) -> list[Case]:
    """The cases of `parts`, in the order of PARTS; toy ones have the same form on models of a moment.

    `common` are fields that all of them share: device, seed, threads, ….
    """
    return [
        Case(part=part, **common, **each)
        for part in PARTS
        if part in parts
        for each in (_toy_cases(part) if toy else _cases(part))
    ]


def _cases(part: str) -> list[dict[str, Any]]:
    if part == "correctness":
        work = _work("checks", prompt=64, response=64, rollouts=64, micro_batch_tokens=4096)
        return [
            {"name": each, "shape": SMALL, "workload": work, "precision": each, "layers": "top half"}
            for each in PRECISIONS
        ]
    if part == "decode":
        work = _work("decoding", prompt=128, response=256)
        return [
            {"name": each.name, "shape": each, "workload": work, "batches": [1, 16, 64, 256], "num_laps": 3}
            for each in (ONE_B, SEVEN_B)
        ]
    if part == "race":
        return _races(ONE_B, prompt=64, response=128, num_laps=2)
    if part == "memory-7b":
        work = _work("iteration", prompt=128, response=128, rollouts=64, micro_batch_tokens=4096)
        return [{"name": "7B, nf4", "shape": SEVEN_B, "workload": work, "precision": "nf4", **_FRUGAL}]
    if part == "largest":
        work = _work("iteration", prompt=64, response=64, rollouts=16, micro_batch_tokens=2048)
        return _ladders(LADDER, work)
    work = _work("iteration", prompt=128, response=256, rollouts=128, num_epochs=2, num_minibatches=4)
    return _by_layers(ONE_B, work, num_laps=3)


def _toy_cases(part: str) -> list[dict[str, Any]]:
    toy = TOYS[0]
    work = _work("toy", prompt=6, response=20, rollouts=8, micro_batch_tokens=128)
    if part == "correctness":
        return [
            {"name": each, "shape": toy, "workload": work, "precision": each, "layers": "top half"}
            for each in PRECISIONS
        ]
    if part == "decode":
        return [{"name": "toy", "shape": toy, "workload": work, "batches": [1, 4]}]
    if part == "race":
        return _races(toy, prompt=6, response=10, num_laps=1)
    if part == "memory-7b":
        return [{"name": "toy, nf4", "shape": toy, "workload": work, "precision": "nf4", **_FRUGAL}]
    return _ladders(TOYS, work) if part == "largest" else _by_layers(toy, work, num_laps=1)


_FRUGAL = {"gradient_checkpointing": True}


def _races(shape: LlamaShape, *, prompt: int, response: int, num_laps: int) -> list[dict[str, Any]]:
    """Responses that all have full length, and responses that EOS ends after half of it on average."""
    cases = []
    for kind, hazard in (("fixed", 0.0), ("real", 1.6 / response)):  # (1 − e⁻¹·⁶) / 1.6 = 0.50
        work = _work(f"ppo-gpu-{kind}", prompt=prompt, response=response, rollouts=64, num_epochs=4)
        work = work.model_copy(update={"eos_hazard": hazard, "num_minibatches": 4})
        case = {"name": work.name, "shape": shape, "workload": work, "precision": "fp32"}
        cases.append({**case, "num_warmup_laps": 1, "num_laps": num_laps})
    return cases


def _ladders(shapes: Sequence[LlamaShape], work: PPOWorkload) -> list[dict[str, Any]]:
    ladders: tuple[Precision, ...] = ("bf16", "nf4")
    return [
        {"name": f"{each.name}, {precision}", "shape": each, "precision": precision, "ladder": precision}
        | {"workload": work, **_FRUGAL}
        for precision in ladders
        for each in shapes
    ]


def _by_layers(shape: LlamaShape, work: PPOWorkload, *, num_laps: int) -> list[dict[str, Any]]:
    places: tuple[Layers, ...] = ("all layers", "top half")
    return [
        {"name": f"{shape.name}, {layers}", "shape": shape, "workload": work, "layers": layers}
        | {"num_warmup_laps": 1, "num_laps": num_laps}
        for layers in places
    ]


def _work(
    name: str,
    *,
    prompt: int,
    response: int,
    rollouts: int = 1,
    num_epochs: int = 1,
    num_minibatches: int = 2,
    micro_batch_tokens: int = 8192,
) -> PPOWorkload:
    return PPOWorkload(
        name=name,
        prompt_tokens=prompt,
        max_response_tokens=response,
        eos_hazard=0.0,
        rollouts=rollouts,
        num_epochs=num_epochs,
        num_minibatches=num_minibatches,
        micro_batch_tokens=micro_batch_tokens,
    )

from benchmarks.memory import Memory
from benchmarks.trl.jobs import Curve, CurvePoint, Lap, Result


def result(
    racer: str, walls: list[float], *, warmup: int = 1, increment: int = 2**20, tokens: tuple[int, ...] = ()
) -> Result:
    """A racer's result with the given seconds a lap; CPU seconds are half of them, four steps a lap."""
    return Result(
        racer=racer,
        laps=[
            Lap(wall_seconds=w, cpu_seconds=w / 2, optimizer_steps=4, parts={"sampling": w / 4})
            for w in walls
        ],
        num_warmup_laps=warmup,
        memory=Memory(imported_bytes=100, peak_bytes=100 + increment, source="test"),
        threads=1,
        device="cpu",
        num_base_parameters=10,
        trainable_parameters={"policy": 3, "value": 4},
        versions={"trl": "1.0"},
        response_tokens=list(tokens),
        num_ended=len(tokens),
    )


def curve(racer: str, seed: int, points: list[tuple[float, float, float]]) -> Curve:
    """A curve of (CPU seconds, gold, KL); wall-clock is twice the CPU time, an iteration has 10 samples."""
    return Curve(
        racer=racer,
        seed=seed,
        num_prompts=5,
        points=[
            CurvePoint(
                iteration=i,
                num_samples=10 * i,
                wall_seconds=2 * cpu,
                cpu_seconds=cpu,
                gold=gold,
                kl_nats=kl,
                figures={},
            )
            for i, (cpu, gold, kl) in enumerate(points)
        ],
    )

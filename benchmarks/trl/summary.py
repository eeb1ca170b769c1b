"""What the rounds of a race say together: every racer's numbers, and ratios between them, as plain JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median, pstdev
from typing import Any

from benchmarks.statistics import MedianRange, paired_ratios, quantile
from benchmarks.trl.jobs import Result
from benchmarks.trl.race import Round

MIB = 2**20


def summarize(rounds: Sequence[Round], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Every racer's numbers, and for each pair (ours, peer) the ratios peer ÷ ours, round by round."""
    names = list(rounds[0])
    return {
        "racers": {name: racer_summary([each[name] for each in rounds]) for name in names},
        "ratios": [ratio_summary(rounds, ours, peer) for ours, peer in pairs],
    }


def racer_summary(results: Sequence[Result]) -> dict[str, Any]:
    """One racer over all rounds."""
    first = results[0]
    steps = [lap.optimizer_steps for result in results for lap in result.laps]
    device = [r.memory.device_peak_bytes / MIB for r in results if r.memory.device_peak_bytes is not None]
    return {
        "wall_seconds_per_lap": asdict(MedianRange.of([r.wall_seconds_per_lap for r in results])),
        "cpu_seconds_per_lap": asdict(MedianRange.of([r.cpu_seconds_per_lap for r in results])),
        "memory_increment_mib": asdict(MedianRange.of([r.memory.increment_bytes / MIB for r in results])),
        "memory_source": first.memory.source,
        "device_peak_mib": asdict(MedianRange.of(device)) if device else None,
        "counted_laps": len(first.counted),
        "optimizer_steps_per_lap": sorted(set(steps)),
        "base_parameters": first.num_base_parameters,
        "trainable_parameters": first.trainable_parameters,
        "threads": first.threads,
        "device": first.device,
        "versions": first.versions,
        "lengths": lengths_summary(results),
        "breakdown": breakdown(results),
        "figures": {key: median(r.figures[key] for r in results) for key in first.figures},
    }


def ratio_summary(rounds: Sequence[Round], ours: str, peer: str) -> dict[str, Any]:
    """Peer ÷ ours of each round, so that above 1 means that ours is faster or smaller."""

    def ratios(number: Callable[[Result], float]) -> dict[str, Any]:
        peers = [number(each[peer]) for each in rounds]
        own = [number(each[ours]) for each in rounds]
        return asdict(paired_ratios(peers, own))

    def per_token(number: Callable[[Result], float]) -> dict[str, Any] | None:
        # The racers draw their own responses: this takes the luck of shorter ones out.
        if not rounds[0][ours].response_tokens:
            return None
        return ratios(lambda r: number(r) / fmean(r.response_tokens))

    return {
        "ours": ours,
        "peer": peer,
        "wall": ratios(lambda r: r.wall_seconds_per_lap),
        "wall_per_token": per_token(lambda r: r.wall_seconds_per_lap),
        "cpu_per_token": per_token(lambda r: r.cpu_seconds_per_lap),
        "cpu": ratios(lambda r: r.cpu_seconds_per_lap),
        "memory": ratios(lambda r: r.memory.increment_bytes),
    }


def lengths_summary(results: Sequence[Result]) -> dict[str, float] | None:
    """The distribution of all sampled responses' lengths in tokens."""
    tokens = [length for result in results for length in result.response_tokens]
    if not tokens:
        return None
    return {
        "num": len(tokens),
        "mean": fmean(tokens),
        "sd": pstdev(tokens),
        "min": min(tokens),
        **{f"p{share}": quantile(tokens, share / 100) for share in (10, 50, 90)},
        "max": max(tokens),
        "ended": sum(result.num_ended for result in results) / len(tokens),
    }


def breakdown(results: Sequence[Result]) -> dict[str, float] | None:
    """Median seconds a lap that each part took."""
    laps = [lap.parts for result in results for lap in result.counted]
    names = list(dict.fromkeys(name for parts in laps for name in parts))
    return {name: median(parts.get(name, 0.0) for parts in laps) for name in names} or None


def rate(summary: Mapping[str, Any], units_per_lap: float) -> float:
    """Units a second of a racer's summary, by its median lap."""
    return units_per_lap / float(summary["wall_seconds_per_lap"]["median"])

"""The learning race in numbers: when a gain was reached, and how much gold the same KL bought."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report import table
from benchmarks.statistics import first_crossing
from benchmarks.trl.frontier import compare_frontiers
from benchmarks.trl.jobs import Curve, CurvePoint
from benchmarks.trl.report import machine_line

SHARES = (0.5, 0.9)
"""Shares of the peer's final gain whose time is taken."""


def summarize_learning(curves: Sequence[Curve], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Ends of all curves, and every pair (ours, peer) of each seed."""
    found = {(curve.racer, curve.seed): curve for curve in curves}
    seeds = sorted({curve.seed for curve in curves})
    return {
        "ends": [_end(curve) for curve in curves],
        "pairs": [
            compare(found[ours, seed], found[peer, seed])
            for ours, peer in pairs
            for seed in seeds
            if (ours, seed) in found and (peer, seed) in found
        ],
    }


def compare(ours: Curve, peer: Curve) -> dict[str, Any]:
    """When each reached the shares of the peer's final gain, and gold over the KL that both have reached."""
    start = peer.points[0].gold
    gain = peer.points[-1].gold - start
    reached = []
    for share in SHARES:
        level = start + share * gain
        row: dict[str, Any] = {"share": share, "gold": level}
        for name, curve in (("ours", ours), ("peer", peer)):
            row[f"{name}_cpu_seconds"] = first_crossing(_line(curve, lambda p: p.cpu_seconds), level)
            row[f"{name}_wall_seconds"] = first_crossing(_line(curve, lambda p: p.wall_seconds), level)
            row[f"{name}_samples"] = first_crossing(_line(curve, lambda p: float(p.num_samples)), level)
        reached.append(row)
    return {
        "ours": ours.racer,
        "peer": peer.racer,
        "seed": ours.seed,
        "peer_gain": gain,
        "reached": reached,
        "equal_kl": compare_frontiers(ours, peer),
    }


def learning_markdown(report: Mapping[str, Any]) -> str:
    """The learning race as Markdown."""
    parts = [
        f"## {report['title']}",
        report["conditions"],
        machine_line(report),
        table(_ENDS, [_end_row(end) for end in report["ends"]]),
    ]
    pairs = report["pairs"]
    if pairs:
        reached = [_reached_row(pair, row) for pair in pairs for row in pair["reached"]]
        parts.append(table(_REACHED, reached))
        parts.append(table(_EQUAL_KL, [_equal_kl_row(pair) for pair in pairs]))
    differences = "\n".join(f"- {line}" for line in report["differences"])
    return "\n\n".join([*parts, f"What still differs:\n\n{differences}"]) + "\n"


_ENDS = ["racer", "seed", "gold", "KL, nats", "samples", "CPU s", "wall s"]
_REACHED = ["ours", "peer", "seed", "of the peer's gain", "CPU s: ours / peer", "wall s", "samples"]
_EQUAL_KL = ["ours", "peer", "seed", "over KL, nats", "mean gold, ours", "mean gold, peer", "ours − peer"]


def _end_row(end: Mapping[str, Any]) -> list[str]:
    return [
        end["racer"],
        str(end["seed"]),
        f"{end['gold_before']:.3f} → {end['gold']:.3f}",
        f"{end['kl_nats']:.2f}",
        f"{end['num_samples']:,}",
        f"{end['cpu_seconds']:.0f}",
        f"{end['wall_seconds']:.0f}",
    ]


def _reached_row(pair: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    return [
        pair["ours"],
        pair["peer"],
        str(pair["seed"]),
        f"{row['share']:.0%} (gold {row['gold']:.3f})",
        _against(row["ours_cpu_seconds"], row["peer_cpu_seconds"]),
        _against(row["ours_wall_seconds"], row["peer_wall_seconds"]),
        _against(row["ours_samples"], row["peer_samples"]),
    ]


def _equal_kl_row(pair: Mapping[str, Any]) -> list[str]:
    equal = pair["equal_kl"]
    return [
        pair["ours"],
        pair["peer"],
        str(pair["seed"]),
        f"0 to {equal['kl_nats']:.2f}",
        f"{equal['ours_gold']:.3f}",
        f"{equal['peer_gold']:.3f}",
        f"{equal['difference']:+.3f}{_interval(equal['interval'])}",
    ]


def _end(curve: Curve) -> dict[str, Any]:
    last = curve.points[-1]
    return {
        "racer": curve.racer,
        "seed": curve.seed,
        "gold_before": curve.points[0].gold,
        **last.model_dump(exclude={"figures"}),
    }


def _line(curve: Curve, x: Callable[[CurvePoint], float]) -> list[tuple[float, float]]:
    return [(x(point), point.gold) for point in curve.points]


def _against(ours: float | None, peer: float | None) -> str:
    return f"{_short(ours)} / {_short(peer)}"


def _short(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]"

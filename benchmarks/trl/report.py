"""A race's summary as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import commit_of, table

Report = Mapping[str, Any]


def markdown(report: Report) -> str:
    """Everything that a reader needs to judge a race: conditions, racers, ratios, breakdown, differences."""
    parts = [f"## {report['title']}", report["conditions"], machine_line(report), _racers(report)]
    if report["ratios"]:
        parts.append(_ratios(report["ratios"]))
    parts += [text for text in (_lengths(report), _breakdown(report)) if text]
    differences = "\n".join(f"- {line}" for line in report["differences"])
    return "\n\n".join([*parts, f"What still differs:\n\n{differences}"]) + "\n"


def machine_line(report: Report) -> str:
    """Machine, versions, commit, seeds and threads in one line."""
    machine = report["machine"]
    commit = commit_of(report["code"])
    seeds = ", ".join(str(seed) for seed in report["seeds"])
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"{machine['system']}; Python {machine['python']}; commit {commit}; device {report['device']}, "
        f"threads {report['threads']}; seeds {seeds}."
    )


def median_range(values: Mapping[str, float], digits: int = 2) -> str:
    """Median, and in brackets the lowest and highest."""
    texts = [f"{values[key]:,.{digits}f}" for key in ("median", "low", "high")]
    return texts[0] if values["num"] == 1 else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _racers(report: Report) -> str:
    unit = report["unit"]
    per_lap = report["units_per_lap"]
    columns = [
        "racer",
        f"{unit}/s",
        "wall s",
        "CPU s",
        "peak MiB over imports",
        "optimizer steps",
        "trainable",
    ]
    racers = report["racers"]
    if has_device := any(summary["device_peak_mib"] for summary in racers.values()):
        columns.append("device peak MiB")
    if has_accuracy := any("accuracy" in summary["figures"] for summary in racers.values()):
        columns.append("held-out accuracy")
    rows = []
    for name, summary in racers.items():
        wall = summary["wall_seconds_per_lap"]
        row = [
            f"{name} (trl {summary['versions'].get('trl', '?')})" if "peer" in name else name,
            f"{per_lap / wall['median']:.3g}",
            median_range(wall),
            median_range(summary["cpu_seconds_per_lap"]),
            median_range(summary["memory_increment_mib"], 0),
            ", ".join(str(number) for number in summary["optimizer_steps_per_lap"]),
            ", ".join(f"{key} {number:,}" for key, number in summary["trainable_parameters"].items()),
        ]
        if has_device:
            row.append(median_range(summary["device_peak_mib"], 0))
        if has_accuracy:
            row.append(
                "{accuracy:.3f} [{accuracy_low:.3f}, {accuracy_high:.3f}]".format(**summary["figures"])
            )
        rows.append(row)
    note = f"Seconds and optimizer steps of one {report['lap']}; median [lowest, highest] of the rounds."
    return f"{table(columns, rows)}\n\n{note}"


def _ratios(ratios: Sequence[Mapping[str, Any]]) -> str:
    columns = ["ours", "peer", "peer ÷ ours: wall", "CPU", "memory"]
    keys = ["wall", "cpu", "memory"]
    if ratios[0]["wall_per_token"] is not None:
        columns += ["wall per response token", "CPU per response token"]
        keys += ["wall_per_token", "cpu_per_token"]
    rows = []
    for each in ratios:
        found = [median_range(each[key]) for key in keys]
        rows.append([each["ours"], each["peer"], *found])
    return table(columns, rows)


def _lengths(report: Report) -> str:
    rows = []
    for name, summary in report["racers"].items():
        if (lengths := summary["lengths"]) is not None:
            keys = ("mean", "sd", "min", "p10", "p50", "p90", "max")
            rows.append([name, f"{lengths['num']:,.0f}", *(f"{lengths[key]:.1f}" for key in keys)])
            rows[-1].append(f"{lengths['ended']:.1%}")
    columns = [
        "response tokens",
        "responses",
        "mean",
        "sd",
        "min",
        "p10",
        "p50",
        "p90",
        "max",
        "ended by EOS",
    ]
    return table(columns, rows) if rows else ""


def _breakdown(report: Report) -> str:
    rows = []
    for name, summary in report["racers"].items():
        if (parts := summary["breakdown"]) is not None:
            total = sum(parts.values())
            rows += [
                [name, part, f"{s:.3f}", f"{s / total:.1%}"] for part, s in sorted(parts.items(), key=_size)
            ]
    return table(["breakdown", "part", f"s per {report['lap']}", "share"], rows) if rows else ""


def _size(item: tuple[str, float]) -> float:
    return -item[1]

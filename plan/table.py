"""The plan as text: a table for each stage, phases side by side, and the verdict."""

from collections.abc import Sequence

from plan.memory import ROWS, Devices, StagePlan
from plan.model import Sketch

_GIB = 2**30
_TIGHT = 0.9
"""Above this share of a device's memory a plan is called tight."""


def render(sketch: Sketch, plans: Sequence[StagePlan], devices: Devices) -> str:
    """What is planned for, a table for each stage in GiB per device, and whether all of them fit."""
    lines = [_heading(sketch, devices)]
    for plan in plans:
        lines += ["", *_table(plan), *(f"  note: {note}" for note in plan.notes)]
    return "\n".join([*lines, "", verdict(plans, devices)])


def verdict(plans: Sequence[StagePlan], devices: Devices) -> str:
    """Whether the stage that needs most fits on a device."""
    plan = max(plans, key=lambda each: each.peak.total)
    needs = f"{plan.stage} needs {_gib(plan.peak.total)} GiB ({plan.peak.name})"
    each = "each device" if devices.num > 1 else "the device"
    if devices.memory_bytes is None:
        return f"{needs} of {each}; give MEMORY= to be told whether that fits"
    has = f"{each} has {_gib(devices.memory_bytes)} GiB"
    if plan.peak.total > devices.memory_bytes:
        return f"does not fit: {needs}, and {has}"
    if plan.peak.total > _TIGHT * devices.memory_bytes:
        return f"fits, but is tight: {needs}, and {has}"
    return f"fits: {needs}, and {has}"


def _heading(sketch: Sketch, devices: Devices) -> str:
    kind = "CUDA device" if devices.on_cuda else "CPU"
    count = f"{devices.num} {kind}{'s' if devices.num > 1 else ''}"
    model = f"{sketch.num_parameters / 1e6:,.0f} M parameters, {sketch.precision} base"
    return f"{sketch.config.model_type}: {model}; {count}, ZeRO {devices.zero}; GiB per device"


def _table(plan: StagePlan) -> list[str]:
    rows = [row for row in ROWS if any(phase.bytes[row] for phase in plan.phases)]
    cells = [["", *(phase.name for phase in plan.phases)]]
    cells += [[row, *(_gib(phase.bytes[row]) for phase in plan.phases)] for row in rows]
    cells += [["total", *(_gib(phase.total) for phase in plan.phases)]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    text = [
        "  ".join(
            [f"  {line[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in cells
    ]
    return [f"{plan.stage}: {_gib(plan.peak.total)} GiB, in {plan.peak.name}", *text]


def _gib(num_bytes: int) -> str:
    gib = num_bytes / _GIB
    return f"{gib:.3f}" if gib < 0.1 else f"{gib:.2f}" if gib < 100 else f"{gib:,.0f}"

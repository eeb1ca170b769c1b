"""Pictures of numbers as SVG that stands inside a page and needs nothing else."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 520, 220, 48, 30, 12
COLORS = ("#3465a4", "#c17d11", "#4e9a06", "#a40000", "#75507b", "#06989a")


def bars(names: Sequence[str], values: Sequence[float]) -> str:
    """A bar for each name, lying, with its value behind it."""
    row, left = 20, 200
    highest = max(values, default=0) or 1
    parts = []
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        y = number * row
        width = (WIDTH - left - 60) * value / highest
        parts.append(_text(left - 6, y + 14, name, anchor="end"))
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{width:.1f}" height="14" fill="{COLORS[0]}"/>')
        parts.append(_text(left + width + 5, y + 14, _short(value)))
    return _svg("".join(parts), height=row * len(names) + 4)


def columns(values: Sequence[float], low: float, high: float, label: str) -> str:
    """A histogram: columns side by side from `low` to `high`."""
    highest = max(values, default=0) or 1
    width = (WIDTH - LEFT - 10) / max(1, len(values))
    parts = []
    for number, value in enumerate(values):
        height = _plot_height() * value / highest
        x, y, wide = LEFT + number * width, HEIGHT - BOTTOM - height, width - 1
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{height:.1f}" fill="{COLORS[0]}"/>'
        )
    ticks = [(LEFT + (WIDTH - LEFT - 10) * share, low + (high - low) * share) for share in (0, 0.5, 1)]
    return _svg("".join(parts) + _axes(ticks, (0, highest), label))


def lines(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    label: str,
    *,
    unit_square: bool = False,
) -> str:
    """A line with dots for each named series; `unit_square`: from 0 to 1 both ways, with the diagonal."""
    points = [point for _, own in series for point in own]
    if not points:
        return ""
    x_low, x_high = (0.0, 1.0) if unit_square else _range([x for x, _ in points])
    y_low, y_high = (0.0, 1.0) if unit_square else _range([0.0, *(y for _, y in points)])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return LEFT + 10 + across * (WIDTH - LEFT - 130), HEIGHT - BOTTOM - up * _plot_height()

    parts = []
    if unit_square:
        parts.append(_polyline([place(0, 0), place(1, 1)], "#aaa", dash=True))
    for number, (name, own) in enumerate(series):
        color = COLORS[number % len(COLORS)]
        spots = [place(x, y) for x, y in own]
        parts.append(_polyline(spots, color))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in spots]
        parts.append(_text(WIDTH - 112, TOP + 14 + 16 * number, name, color=color))
    values = sorted({x for x, _ in points}) if not unit_square else [0.0, 0.5, 1.0]
    ticks = [(place(x, y_low)[0], x) for x in values]
    return _svg("".join(parts) + _axes(ticks, (y_low, y_high), label))


def _axes(ticks: Sequence[tuple[float, float]], y_range: tuple[float, float], label: str) -> str:
    base = HEIGHT - BOTTOM
    parts = [
        f'<path d="M{LEFT} {TOP}V{base}H{WIDTH - 8}" fill="none" stroke="#777"/>',
        _text(LEFT - 5, base, _short(y_range[0]), anchor="end"),
        _text(LEFT - 5, TOP + 8, _short(y_range[1]), anchor="end"),
        _text((LEFT + WIDTH) / 2, HEIGHT - 2, label, anchor="middle"),
    ]
    parts += [_text(x, base + 14, _short(value), anchor="middle") for x, value in ticks]
    return "".join(parts)


def _polyline(spots: Sequence[tuple[float, float]], color: str, *, dash: bool = False) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    dashes = ' stroke-dasharray="4 4"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"{dashes}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", color: str = "currentColor") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}" fill="{color}">'
        f"{escape(text)}</text>"
    )


def _svg(content: str, *, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">{content}</svg>'


def _plot_height() -> float:
    return HEIGHT - BOTTOM - TOP


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low, low + 1)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"

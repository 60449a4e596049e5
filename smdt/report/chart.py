"""Line charts as inline SVG, so that a page needs neither scripts nor a network (pure)."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 34
COLOURS = ("#2f6fb0", "#c4572b", "#3c8d4f", "#7c5aa6", "#8a6d1f")

LARGEST = 1e300
"""Larger values are unknown: a range of them could not be computed."""

Points = Sequence[tuple[float, float]]


def number(value: object) -> float | None:
    """Return a finite number that a JSON value says, None if it says none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST and isfinite(value) else None


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """Return an SVG of one line for each series.

    Args:
        series: points (x, y) by name, x ascending; a y that is not finite is unknown and left
            out, and so are empty series.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
    """
    known = {name: [p for p in points if isfinite(p[1])] for name, points in series.items()}
    shown = {name: points for name, points in known.items() if points}
    if not shown:
        return "<p class='note'>nothing measured yet</p>"
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    x_low, x_high = _range(xs, from_zero=False)
    y_low, y_high = _range(ys, from_zero=min(ys) >= 0)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return across, down

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for step in range(5):
        value = y_low + (y_high - y_low) * step / 4
        _, down = place(x_low, value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}" class="grid"/>'
            f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for value, anchor in ((x_low, "start"), (x_high, "end")):
        across, _ = place(value, y_low)
        parts.append(
            f'<text x="{across:.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{value:g}</text>'
        )
    centre = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{centre}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for number, (name, points) in enumerate(shown.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" stroke="{colour}" class="line"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT - 4}" y="{TOP + 14 * (number + 1)}" text-anchor="end" '
            f'fill="{colour}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def downsample(points: Points, most: int = 400) -> Points:
    """Return at most `most` points, each the mean of a run of neighbours."""
    run = -(-len(points) // most)
    groups = [points[start : start + run] for start in range(0, len(points), max(1, run))]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _range(values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    low = 0.0 if from_zero else min(values)
    high = max(values)
    return (low, high) if high > low else (low, low + max(1.0, 1e-6 * abs(low)))

"""Charts of localization errors in metres, and of confidence (pure)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smdt.report.chart import COLOURS, HEIGHT, WIDTH, line_chart

KINDS: Sequence[tuple[str, float]] = (
    ("within 25 m", 25.0),
    ("within 100 m", 100.0),
    ("within 1 km", 1000.0),
    ("farther", float("inf")),
)
"""Kinds of errors by the largest of each, metres."""
KIND_COLOURS = ("#3c8d4f", "#d4a017", "#c4572b", "#7a1f3d")
BINS = 40
MARGIN = 14
LEGEND_WIDTH = 130


def outcome_charts(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Return SVGs by title of what `evaluation.json` of a retrieval says."""
    outcomes = evaluation["outcomes"]
    curve = [(float(np.log10(k)), 100 * recall) for k, recall in evaluation["recall_curve"]]
    charts = {
        "Recall by depth": line_chart({"recall": curve}, "depth k of the list, log10", "%"),
        "Similarity of true and of best wrong pairs": line_chart(
            similarities(outcomes), "similarity", "queries"
        ),
    }
    known = [e for e in outcomes["error_m"] if e is not None]
    if known:
        cumulative = [
            (float(np.log10(1 + metres)), 100 * (count + 1) / len(known))
            for count, metres in enumerate(sorted(known))
        ]
        charts["Share of queries by error in metres"] = line_chart(
            {"queries": cumulative}, "log10 of 1 + metres to the nearest tile's place", "%"
        )
        charts["Map of errors"] = error_map(outcomes)
    return charts


def similarities(outcomes: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """Return histograms of the similarity of true and of best wrong pairs, on common bins."""
    scores = {
        "true": [s for s in outcomes["true_score"] if s is not None],
        "best wrong": [s for s in outcomes["wrong_score"] if s is not None],
    }
    everything = [score for kind in scores.values() for score in kind]
    low, high = min(everything), max(everything)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    return {
        name: [
            (float(x), float(count))
            for x, count in zip(middles, np.histogram(kind, edges)[0], strict=True)
        ]
        for name, kind in scores.items()
    }


def error_map(outcomes: Mapping[str, Sequence[float | None]]) -> str:
    """Return an SVG with a dot where each query is, in the colour of its error; north is up."""
    columns = (outcomes[name] for name in ("east_m", "north_m", "error_m"))
    dots = [dot for dot in zip(*columns, strict=True) if None not in dot]
    places = np.array(dots, dtype=np.float64)
    low, high = places[:, :2].min(axis=0), places[:, :2].max(axis=0)
    room = np.array([WIDTH - LEGEND_WIDTH, HEIGHT]) - 2 * MARGIN
    metres_a_pixel = max(float(((high - low) / room).max()), 1e-9)
    across = MARGIN + (places[:, 0] - low[0]) / metres_a_pixel
    down = MARGIN + (high[1] - places[:, 1]) / metres_a_pixel
    kinds = np.searchsorted([most for _, most in KINDS], places[:, 2])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="map of errors">']
    # The farthest last, so that none of them is hidden.
    parts += [
        f'<circle cx="{across[row]:.1f}" cy="{down[row]:.1f}" r="2.2" '
        f'fill="{KIND_COLOURS[kinds[row]]}"/>'
        for row in np.argsort(places[:, 2], kind="stable")
    ]
    for number, (name, _) in enumerate(KINDS):
        share = float((kinds == number).mean())
        parts.append(
            f'<text x="{WIDTH - LEGEND_WIDTH}" y="{MARGIN + 16 * (number + 1)}" '
            f'fill="{KIND_COLOURS[number]}">{name}: {share:.1%}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - LEGEND_WIDTH}" y="{HEIGHT - MARGIN}" fill="{COLOURS[0]}">'
        f"{metres_a_pixel * 100:.3g} m = 100 px</text>"
    )
    return "".join([*parts, "</svg>"])

"""A committed dashboard as a page: its own panels and queries, with what a Prometheus answers.

This is no Grafana, which is in no package registry: same panels in the same places, plainer curves.
"""

import json
import math
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from smdt.report.chart import line_chart
from tests.monitoring.server import Prometheus, Series

SECONDS = 75.0
"""How far the curves go back."""
STEP_SECONDS = 0.5
ROW_PIXELS = 32
"""Pixels of a unit of Grafana's heights."""
STYLE = Path(__file__).with_suffix(".css")


def dashboard_page(path: Path, prometheus: Prometheus, variables: Mapping[str, str]) -> str:
    """Return a dashboard as HTML, with current values.

    Args:
        path: its JSON.
        prometheus: that answers.
        variables: of the dashboard, by name.
    """
    content = json.loads(path.read_text())
    parts = [_panel(panel, prometheus, variables) for panel in content["panels"]]
    names = [variable["name"] for variable in content.get("templating", {}).get("list", ())]
    chosen = ", ".join(f"{name} {variables[name]}" for name in names) or "everything"
    title = f"{content['title']} ({chosen})"
    return (
        f"<!doctype html><meta charset=utf-8><style>{STYLE.read_text()}</style>"
        f'<h1>{escape(title)}</h1><div class="board">{"".join(parts)}</div>'
    )


def height_of(path: Path) -> int:
    """Return how high a dashboard's page is, pixels."""
    panels = json.loads(path.read_text())["panels"]
    return 70 + ROW_PIXELS * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)


def _panel(panel: Mapping[str, Any], prometheus: Prometheus, variables: Mapping[str, str]) -> str:
    place = panel["gridPos"]
    where = (
        f"grid-column: {place['x'] + 1} / span {place['w']};"
        f" grid-row: {place['y'] + 1} / span {place['h']}"
    )
    if panel["type"] == "row":
        return f'<div class="row" style="{where}">{escape(panel["title"])}</div>'
    unit = panel["fieldConfig"]["defaults"]["unit"]
    draw = {"timeseries": _curves, "stat": _numbers, "bargauge": _bars}[panel["type"]]
    targets = [_filled(target, variables) for target in panel["targets"]]
    inside = draw(targets, unit, prometheus)
    return f'<div class="panel" style="{where}"><h2>{escape(panel["title"])}</h2>{inside}</div>'


def _filled(target: Mapping[str, str], variables: Mapping[str, str]) -> tuple[str, str]:
    """Return query and legend of a panel's target."""
    expr = target["expr"]
    for name, value in variables.items():
        expr = expr.replace(f"${name}", value)
    return expr, target["legendFormat"]


def _legend(template: str, series: Series) -> str:
    for label, value in series.items():
        template = template.replace(f"{{{{{label}}}}}", value)
    return template


def _curves(targets: list[tuple[str, str]], unit: str, prometheus: Prometheus) -> str:
    end = time.time()
    span = {"start": end - SECONDS, "end": end, "step": STEP_SECONDS}
    factor, shown = _scale(unit)
    lines = {}
    for expr, legend in targets:
        for each in prometheus.get("query_range", query=expr, **span)["result"]:
            points = [(round(at - end, 1), factor * float(value)) for at, value in each["values"]]
            lines[_legend(legend, each["metric"])] = points
    return line_chart(lines, "seconds ago", shown)


def _numbers(targets: list[tuple[str, str]], unit: str, prometheus: Prometheus) -> str:
    shown = [
        f"{_text(value, unit)} <small>{escape(_legend(legend, series))}</small>"
        for expr, legend in targets
        for series, value in prometheus.query(expr)
    ]
    return f'<div class="numbers">{" ".join(shown)}</div>'


def _bars(targets: list[tuple[str, str]], unit: str, prometheus: Prometheus) -> str:
    ((expr, legend),) = targets
    answer = prometheus.query(expr)
    longest = max((value for _, value in answer if math.isfinite(value)), default=0.0) or 1.0
    return "".join(
        f'<div class="bar"><span>{escape(_legend(legend, series))}</span>'
        f'<i style="width: {100 * max(0.0, value) / longest:.0f}%"></i>{_text(value, unit)}</div>'
        for series, value in answer
    )


def _scale(unit: str) -> tuple[float, str]:
    """Return a factor that makes a unit readable, and what it makes of it."""
    known = {"percentunit": (100.0, "%"), "bytes": (1e-6, "MB"), "Bps": (1e-6, "MB/s")}
    return known.get(unit, (1.0, "" if unit in ("short", "none", "sci") else unit))


def _text(value: float, unit: str) -> str:
    factor, shown = _scale(unit)
    number = factor * value
    return f"{number:.0f} {shown}" if abs(number) >= 100 else f"{number:.3g} {shown}"

"""The few kinds of panels that the dashboards are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as models
from grafana_foundation_sdk.models import dashboard as dashboard_models

SOURCE = dashboard_models.DataSourceRef(type_val="prometheus", uid="prometheus")
"""As `grafana/provisioning/datasources/prometheus.yml` names it."""
TAG = "smdt"

Panel = timeseries.Panel | stat.Panel | bargauge.Panel
Variable = Builder[dashboard_models.VariableModel]


@dataclass(frozen=True)
class Query:
    """A query of a panel to Prometheus.

    Attributes:
        expr: in PromQL, with Grafana's variables.
        legend: name of a series, with its labels in double braces.
    """

    expr: str
    legend: str


def timeseries_panel(
    title: str, unit: str, *queries: Query, about: str = "", stacked: bool = False, width: int = 12
) -> Panel:
    """Return curves over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(8)
        .min(0)
        .fill_opacity(25 if stacked else 0)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(models.LegendDisplayMode.LIST)
            .placement(models.LegendPlacement.BOTTOM)
        )
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(models.StackingMode.NORMAL))
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number).range())
    return panel


def stat_panel(title: str, unit: str, *queries: Query, about: str = "", width: int = 4) -> Panel:
    """Return the newest values, large."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(4)
        .graph_mode(models.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number).instant())
    return panel


def bar_gauge_panel(title: str, unit: str, query: Query, about: str = "", width: int = 12) -> Panel:
    """Return the newest values as bars, in the order of the query."""
    return (
        bargauge.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(8)
        .min(0)
        .orientation(models.VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(query, 0).instant())
    )


def variable(name: str, label: str, query: str, *, several: bool = False) -> Variable:
    """Return a choice above the dashboard; with `several` of any number, all at first."""
    made = (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(dashboard_models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard_models.VariableSort.ALPHABETICAL_ASC)
    )
    return made.multi(True).include_all(True) if several else made


def make_dashboard(
    title: str,
    uid: str,
    about: str,
    rows: Mapping[str, Sequence[Panel]],
    variables: Sequence[Variable] = (),
) -> dashboard.Dashboard:
    """Return a dashboard that links to the others.

    Args:
        title: of the dashboard.
        uid: by which links find it.
        about: what it shows.
        rows: panels by the heading above them.
        variables: choices above all.
    """
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([TAG])
        .refresh("15s")
        .time("now-1h", "now")
        .tooltip(dashboard_models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("SMDT")
            .type(dashboard_models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for choice in variables:
        made.with_variable(choice)
    ids = count(1)
    for heading, panels in rows.items():
        made.with_row(dashboard.Row(heading).id(next(ids)))
        for panel in panels:
            made.with_panel(panel.id(next(ids)))
    return made


def _target(query: Query, number: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + number))
        .datasource(SOURCE)
    )

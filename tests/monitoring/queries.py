"""Every query of the committed dashboards and rules."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import promql_parser
import yaml

from monitoring.files import DASHBOARDS, FOLDER

COMPARISONS = {"and", "unless", ">", "<", "==", "!=", ">=", "<="}


class PanelQuery(NamedTuple):
    """A query as it stands in a dashboard, with Grafana's variables."""

    dashboard: str
    panel: str
    expr: str

    def filled(self, **variables: str) -> str:
        """Return the query as Grafana would send it."""
        expr = self.expr
        for name, value in variables.items():
            expr = expr.replace(f"${name}", value)
        assert "$" not in expr, expr
        return expr


def panel_queries() -> Iterator[PanelQuery]:
    """Yield the queries of all dashboards."""
    for path in sorted((FOLDER / DASHBOARDS).glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield PanelQuery(path.stem, panel["title"], target["expr"])


def measured(rule: dict) -> str:
    """Return what a rule measures: of an alert the part before it is compared with a threshold."""
    expr = promql_parser.parse(rule.get("query") or rule["expr"])
    while True:
        if isinstance(expr, promql_parser.AggregateExpr) and _compares(expr.expr):
            expr = expr.expr
        elif not _compares(expr):
            return expr.prettify()
        expr = expr.lhs


def _compares(expr: object) -> bool:
    return isinstance(expr, promql_parser.BinaryExpr) and str(expr.op) in COMPARISONS


def committed_rules() -> list[dict]:
    """Return the rules of `rules.yml`."""
    content = yaml.safe_load((FOLDER / "rules.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]

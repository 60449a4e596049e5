"""The committed configuration is what Python makes, and what Prometheus and Grafana accept."""

import json
import re
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.files import DASHBOARDS, FOLDER, contents
from monitoring.rules import RUNBOOK
from monitoring.times import RuleDurations, duration
from smdt.telemetry.metrics import TrainingMetrics
from tests.monitoring.queries import committed_rules, panel_queries
from tests.system_packages import require

ROOT = Path(__file__).parent.parent.parent


def promtool(*words: object) -> str:
    require("promtool")
    done = subprocess.run(
        ["promtool", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_committed_is_what_python_makes():
    for name, text in contents().items():
        assert (FOLDER / name).read_text() == text, f"{name}: run python -m monitoring"
    made = {path.name for path in (FOLDER / DASHBOARDS).iterdir()}
    assert {f"{DASHBOARDS}/{name}" for name in made} == contents().keys() - {"rules.yml"}


def test_prometheus_accepts_its_configuration():
    promtool("check", "config", FOLDER / "prometheus.yml")


def test_every_alert_fires_when_it_should_and_only_then():
    assert "SUCCESS" in promtool("test", "rules", FOLDER / "rules_test.yml")
    tested = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    checks = [check for test in tested for check in test["alert_rule_test"]]
    for rule in committed_rules():
        if "alert" in rule:
            fired = [check for check in checks if check["alertname"] == rule["alert"]]
            assert any(check.get("exp_alerts") for check in fired), rule["alert"]


def test_every_alert_has_its_section_in_the_runbook():
    headings = re.findall(r"^## (.+)$", (ROOT / RUNBOOK).read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for rule in committed_rules():
        if "alert" in rule:
            page, anchor = rule["annotations"]["runbook_url"].split("#")
            assert page == RUNBOOK
            assert anchor in anchors, f"docs/runbook.md has no section {rule['alert']}"


@pytest.mark.parametrize("path", sorted((FOLDER / DASHBOARDS).glob("*.json")), ids=lambda p: p.stem)
def test_grafana_s_own_schema_reads_the_dashboards(path):
    content = json.loads(path.read_text())
    read = Dashboard.from_json(content)
    assert read.title == content["title"]
    ids = [panel["id"] for panel in content["panels"]]
    assert len(set(ids)) == len(ids)


def test_queries_are_promql_about_metrics_that_are_declared():
    known = {rule["record"] for rule in committed_rules() if "record" in rule} | {"up", "ALERTS"}
    declared = {family.name for family in TrainingMetrics("", "", 0).registry.collect()}
    suffixes = ("_total", "_bucket", "_sum", "_count", "_info")
    for query in panel_queries():
        expr = query.filled(run="r", stage="s", set="d", __rate_interval="1m")
        promql_parser.parse(expr)
        for name in re.findall(r"\b(smdt[_:][a-z_:]+)", expr):
            base = next((name.removesuffix(end) for end in suffixes if name.endswith(end)), name)
            later = name.startswith(("smdt_shards", "smdt_launcher"))
            assert later or name in known or base in declared, f"{query}: {name}"


def test_what_the_configuration_names_is_there():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (FOLDER / source).exists(), source
    sources = yaml.safe_load(
        (FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    used = {
        target["datasource"]["uid"]
        for path in (FOLDER / DASHBOARDS).glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    }
    assert used == {source["uid"] for source in sources["datasources"]}


def test_durations_are_prometheus_own():
    assert [duration(s) for s in (0.5, 90, 300, 7200)] == ["500ms", "90s", "5m", "2h"]
    assert RuleDurations().scaled(60).stall == 15

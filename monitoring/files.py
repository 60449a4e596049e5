"""The generated files below `configs/monitoring`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from monitoring.cluster import cluster
from monitoring.data import data
from monitoring.rules import RUNBOOK, as_yaml
from monitoring.shards import shards
from monitoring.stage import stage
from monitoring.times import RuleDurations
from smdt.config_file import CONFIGS

FOLDER = CONFIGS / "monitoring"
RULES = "rules.yml"
DASHBOARDS = "grafana/dashboards"
HEADER = (
    "# Made by `python -m monitoring`: what is edited here is lost, edit monitoring/rules.py.\n"
)


def contents(runbook: str = RUNBOOK) -> Mapping[str, str]:
    """Return the text of every generated file, by its path in the folder (pure)."""
    dashboards = {"cluster": cluster(), "run": stage(), "data": data(), "shards": shards()}
    return {
        RULES: rules_text(RuleDurations(), runbook),
        **{f"{DASHBOARDS}/{name}.json": _json(made) for name, made in dashboards.items()},
    }


def rules_text(times: RuleDurations, runbook: str = RUNBOOK) -> str:
    """Return the rule file."""
    return HEADER + yaml.dump(as_yaml(times, runbook), Dumper=_Dumper, sort_keys=False, width=1000)


def write(folder: Path, runbook: str = RUNBOOK) -> Iterator[Path]:
    """Write every file; yield its path."""
    for name, text in contents(runbook).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        yield path


def _json(made: Dashboard) -> str:
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


class _Dumper(yaml.SafeDumper):
    """Writes expressions of several lines without reformatting."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)

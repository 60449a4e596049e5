"""What users hold of a version: commands, YAML keys, metrics, and the sections that alerts link to.

`python -m tests.compatibility.interface FILE` writes it; `interface-*.json` are those of versions
that users have.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.core
from prometheus_client import CollectorRegistry

from data_shards.build.metrics import ShardMetrics
from data_shards.cli import app as data_shards
from launcher.cli import app as launcher
from launcher.metrics import LauncherMetrics
from launcher.requeue import app as requeue
from smdt.cli.app import app as smdt
from smdt.stages.config import SCHEMAS
from smdt.telemetry.metrics import TrainingMetrics
from smdt.train import app as train

REQUIRED = "(required)"
ROOT = Path(__file__).parent.parent.parent
COMMANDS = {
    "smdt": smdt,
    "python -m smdt.train": train,
    "python -m launcher": launcher,
    "python -m launcher.requeue": requeue,
    "python -m data_shards": data_shards,
}


def interface() -> dict[str, dict[str, list[str]]]:
    """What stands in the code that is imported: words by name, by kind."""
    keys: dict[str, set[str]] = defaultdict(set)
    for stage, schema in SCHEMAS.items():
        for key, word in _keys(schema.model_json_schema()):
            keys[f"{stage} {key}"].add(word)
    return {
        "commands": {
            name: words
            for program, app in COMMANDS.items()
            for name, words in _commands(program, typer.main.get_command(app))
        },
        "yaml": {key: sorted(words) for key, words in keys.items()},
        "metrics": {
            name: labels
            for metrics in (TrainingMetrics("", "", 0), ShardMetrics("", 0), LauncherMetrics(""))
            for name, labels in _metrics(metrics.registry)
        },
        "sections": {page.name: _anchors(page) for page in (ROOT / "docs").glob("*.md")},
    }


def _commands(name: str, command: Any) -> Iterator[tuple[str, list[str]]]:
    """A command and each one below it, with its options and arguments."""
    words = []
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        names = [f"<{parameter.name}>"] if is_argument else parameter.opts
        required = f" {REQUIRED}" if parameter.required else ""
        words += [f"{each}{required}" for each in (*names, *parameter.secondary_opts)]
    yield name, sorted(words)
    if isinstance(command, typer.core.TyperGroup):
        for below, each in command.commands.items():
            yield from _commands(f"{name} {below}", each)


def _keys(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key of a JSON schema by its path, with a default or a word that it may be.

    A key that several networks have comes once for each.
    """
    definitions = schema.get("$defs", {})

    def walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
        variants = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
        for variant in variants:
            yield from walk(variant, path)
        if "$ref" in node:
            yield from walk(definitions[node["$ref"].split("/")[-1]], path)
        for key, below in node.get("properties", {}).items():
            where = f"{path}.{key}" if path else key
            default = below.get("default", REQUIRED)
            is_section = isinstance(default, dict)
            yield (
                where,
                default
                if default == REQUIRED
                else "a section"
                if is_section
                else (f"default {json.dumps(default)}"),
            )
            yield from walk(below, where)
        for word in [*node.get("enum", []), *([node["const"]] if "const" in node else [])]:
            yield path, f"may be {json.dumps(word)}"

    yield from walk(schema, "")


def _metrics(registry: CollectorRegistry) -> Iterator[tuple[str, list[str]]]:
    for collector in registry._collector_to_names:
        for metric in collector.describe():
            yield f"{metric.name} ({metric.type})", sorted(collector._labelnames)


def _anchors(page: Path) -> list[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return sorted(re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(interface(), indent=1, sort_keys=True) + "\n")

"""The page itself: what a run folder says, as one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from data_shards.atomic import write_atomic
from data_shards.errors import InputError
from smdt import config as configuration
from smdt.config import AlignmentConfig, RetrievalConfig
from smdt.data.split import Split
from smdt.evaluation.score import score_text
from smdt.report.alignments import alignments
from smdt.report.chart import line_chart, thin
from smdt.report.pictures import Pictures, tensor_uri
from smdt.stages.aerial import aerial_images, aerial_view
from smdt.training import checkpoint
from smdt.training.run_folder import RunFolder

AERIAL_INPUTS = 4
"""Pairs of which it is shown what the towers see."""
ALIGNMENTS = 8
"""Held-out pairs whose alignment is shown."""
RETRIEVALS = 8
"""Best and worst retrievals that are shown."""


def write_report(root: Path) -> Path:
    """Write `report.html` of the run in `root` and return its path.

    Raises:
        InputError: `root` is no run folder.
    """
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise InputError(f"{root}: not a run folder, it has no {folder.config.name}")
    config = configuration.load(folder.config)
    records = list(folder.read_metrics())
    steps = [record for record in records if "losses" in record]
    evaluation = read_json(folder.evaluation)
    state = folder.read_state() or {}
    pictures: dict[str, Any] = {"retrievals": {}, "aerial_inputs": [], "alignments": []}
    if evaluation and isinstance(config, RetrievalConfig | AlignmentConfig):
        split = Split.open(evaluation["shards"], evaluation["split"], config.data.cache)
        shown = Pictures(split)
        if isinstance(config, RetrievalConfig):
            found = evaluation["retrievals"]
            gallery = Split.open(evaluation["shards"], evaluation["gallery"], config.data.cache)
            tiles = Pictures(gallery)
            pictures["retrievals"] = retrievals(shown, tiles, found)
            pictures["aerial_inputs"] = aerial_inputs(shown, tiles, config, found[:AERIAL_INPUTS])
        elif checkpoint.published(folder.checkpoints):
            pictures["alignments"] = alignments(shown, root, spread(len(split), ALIGNMENTS))
    page = Environment(loader=PackageLoader("smdt.report", "."), autoescape=select_autoescape())
    text = page.get_template("page.html").render(
        name=config.run.name,
        status=state.get("status", "unknown"),
        step=state.get("step", 0),
        ranks=read_json(folder.environment).get("world_size", "?"),
        precision=config.precision,
        shards=config.data.shards,
        protocol=evaluation.get("protocol", evaluation.get("split", "")),
        samples=evaluation.get("queries", evaluation.get("pairs", 0)),
        missing=evaluation.get("missing", 0),
        scores=evaluation.get("scores", {}),
        score_text=score_text,
        comparison=read_json(folder.references),
        charts=charts(steps, records),
        times=times(steps),
        quarantined=count_lines(folder.quarantine),
        aerial=config.aerial if isinstance(config, RetrievalConfig) else "",
        config=config.to_yaml(),
        **pictures,
    )
    write_atomic(folder.report, text.encode())
    return folder.report


def charts(
    steps: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the curves of a run as SVG, by title."""

    def curve(group: str) -> dict[str, list[tuple[float, float]]]:
        names = steps[-1][group] if steps else {}
        return {name: [(r["step"], r[group][name]) for r in steps] for name in names}

    scored = [record for record in records if "scores" in record]
    kinds = scored[-1]["scores"] if scored else {}
    scores = {kind: [(r["step"], r["scores"][kind]) for r in scored] for kind in kinds}
    recall = {
        kind: [(step, 100 * value) for step, value in line]
        for kind, line in scores.items()
        if kind.startswith("R@")
    }
    others = {
        f"{kind} on the held-out split": ({kind: line}, kind)
        for kind, line in scores.items()
        if kind not in recall
    }
    seconds = {
        name: [(r["step"], r[f"{key}_seconds"]) for r in steps]
        for name, key in (("whole step", "step"), ("waiting for data", "data_wait"))
    }
    losses = curve("losses")
    # Terms of several sizes would flatten each other in one chart.
    terms = {f"Loss: {name}": ({name: line}, "loss") for name, line in losses.items()}
    shown = {
        **(terms if len(terms) > 1 else {"Loss": (losses, "loss")}),
        **({"Recall on the held-out split": (recall, "%")} if recall else {}),
        **others,
        "Learning rate": (curve("learning_rate"), "rate"),
        "Gradient norm before clipping": (curve("gradient_norm"), "norm"),
        "Time of a step": (seconds, "seconds"),
    }
    return {
        title: line_chart({name: thin(line) for name, line in lines.items()}, "step", unit)
        for title, (lines, unit) in shown.items()
    }


def times(steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return where the steps' time went, as text by name."""
    total = sum(record["step_seconds"] for record in steps)
    if not total:
        return {}
    wait = sum(record["data_wait_seconds"] for record in steps)
    return {
        "steps": f"{len(steps)}",
        "in steps": f"{total:.1f} s",
        "waiting for data": f"{wait:.1f} s, {wait / total:.1%}",
        "computing": f"{total - wait:.1f} s, {1 - wait / total:.1%}",
    }


def retrievals(
    queries: Pictures, gallery: Pictures, found: Sequence[Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the best and the worst queries with the tiles that were nearest, by title."""

    def row(entry: Mapping[str, Any]) -> dict[str, Any]:
        right = entry["right"]
        scores = dict(zip(entry["nearest"], entry["scores"], strict=True))
        if not set(right) & set(scores):  # a true tile that was missed comes last
            scores[right[0]] = entry["true_score"]
        return {
            "query": queries.source(entry["query"], "ground"),
            "name": queries.name(entry["query"]),
            "position": f"{1 + entry['rank']:g}",
            "tiles": [
                {
                    "image": gallery.source(tile, "aerial"),
                    "name": gallery.name(tile),
                    "score": score,
                    "true": tile in right,
                }
                for tile, score in scores.items()
            ],
        }

    half = min(RETRIEVALS, len(found) // 2)
    return {
        "Best retrievals": [row(entry) for entry in found[:half]],
        "Worst retrievals": [row(entry) for entry in found[len(found) - half :][::-1]],
    }


def aerial_inputs(
    queries: Pictures,
    gallery: Pictures,
    config: RetrievalConfig,
    found: Sequence[Mapping[str, Any]],
) -> list[dict[str, str]]:
    """Return aerial image, what the aerial tower sees of it, and the panorama of some queries."""
    aerial = aerial_images(config)
    tiles = [entry["right"][0] for entry in found]
    batches = gallery.batches(tiles, aerial_view(config))
    return [
        {
            "aerial": gallery.source(tile, "aerial"),
            "input": tensor_uri(aerial(batch, slice(0, 1))[0]),
            "ground": queries.source(entry["query"], "ground"),
        }
        for entry, tile, batch in zip(found, tiles, batches, strict=True)
    ]


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` sample ids, evenly spaced from the first."""
    step = max(1, -(-count // most))
    return list(range(0, count, step))


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of the run folder, empty if it is not there."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def count_lines(path: Path) -> int:
    """Return how many lines a file has, 0 if it is not there."""
    if not path.is_file():
        return 0
    with path.open() as file:
        return sum(1 for _ in file)

"""The page itself: what a run folder says, as one HTML file that needs nothing else."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from data_shards.base.atomic import write_atomic
from data_shards.base.errors import InputError, UserError
from smdt.data.split import Split
from smdt.evaluation.outcomes import score_text
from smdt.report.alignments import alignments
from smdt.report.chart import number
from smdt.report.curves import charts, times
from smdt.report.errors import outcome_charts
from smdt.report.history import attempts
from smdt.report.pictures import Pictures, tensor_uri
from smdt.report.segmentations import segmentations
from smdt.stages import config as configuration
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.base_config import Config
from smdt.stages.retrieval.aerial import aerial_images, aerial_view
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder

AERIAL_INPUTS = 4
"""Pairs of which it is shown what the towers see."""
HELD_OUT = 8
"""Held-out samples whose alignment or class map is shown."""
SAMPLES = ("queries", "pairs", "samples")
"""What evaluations call the number of samples that they compared."""
RETRIEVALS = 8
"""Best and worst retrievals that are shown."""
NO_PICTURES: Mapping[str, Any] = {
    **{"retrievals": {}, "outcomes": {}},
    **{"aerial_inputs": [], "alignments": [], "segmentations": []},
}
"""What the page shows of the evaluated data where nothing is known of it."""

_log = logging.getLogger(__name__)


def write_report(root: Path) -> Path:
    """Write `report.html` of the run in `root` and return its path.

    Raises:
        InputError: `root` is not a run folder.
    """
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise InputError(f"{root}: not a run folder, it has no {folder.config.name}")
    config = configuration.load(folder.config)
    records = list(folder.read_metrics())
    history = list(folder.read_history())
    evaluation = read_json(folder.evaluation)
    state = read_json(folder.state)
    scores = known_scores(evaluation.get("scores"))
    references = read_json(folder.references)
    pictures = dict(NO_PICTURES)
    try:
        pictures |= pictures_of(root, config, evaluation)
    except UserError as error:
        _log.warning("%s: the report shows no pictures: %s", root, error)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        _log.warning(
            "%s: the report shows no pictures, since the file is damaged or of another version "
            "of smdt (%s: %s)",
            *(folder.evaluation, type(error).__name__, error),
        )
    status = str(state.get("status", "unknown"))
    steps = [number(each.get("step")) for each in (state, *records)]
    page = Environment(loader=PackageLoader("smdt.report", "."), autoescape=select_autoescape())
    text = page.get_template("page.html").render(
        name=config.run.name,
        status=status,
        step=max((int(step) for step in steps if step is not None), default=0),
        ranks=read_json(folder.environment).get("world_size", "?"),
        precision=config.precision,
        shards=config.data.shards,
        protocol=evaluation.get("protocol", evaluation.get("split", "")),
        samples=next((evaluation[name] for name in SAMPLES if name in evaluation), 0),
        missing=evaluation.get("missing", 0),
        scores=scores,
        score_text=score_text,
        comparison={name: known_scores(values) for name, values in references.items()},
        charts=charts(records, config.batch.global_batch),
        times=times(records, history, config.batch.global_batch),
        attempts=attempts(history, status),
        checkpoints=checkpoints(folder),
        quarantined=quarantined_by_reason(folder.read_quarantine()),
        aerial=config.aerial if isinstance(config, RetrievalConfig) else "",
        config=config.to_yaml(),
        **pictures,
    )
    write_atomic(folder.report, text.encode(errors="backslashreplace"))
    return folder.report


def pictures_of(root: Path, config: Config, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of the evaluated data, by its name in the page.

    Raises:
        UserError: the data set or the weights are not there.
    """
    pictures: dict[str, Any] = {}
    if not evaluation:
        return pictures
    folder = RunFolder(root)
    split = Split.open(evaluation["shards"], evaluation["split"], config.data.cache)
    shown = Pictures(split)
    if isinstance(config, RetrievalConfig):
        found = evaluation["retrievals"]
        gallery = Split.open(evaluation["shards"], evaluation["gallery"], config.data.cache)
        tiles = Pictures(gallery)
        pictures["retrievals"] = retrievals(shown, tiles, found)
        pictures["outcomes"] = outcome_charts(evaluation)
        pictures["aerial_inputs"] = aerial_inputs(shown, tiles, config, found[:AERIAL_INPUTS])
    elif checkpoint.published(folder.checkpoints):
        some = spread(len(split), HELD_OUT)
        if isinstance(config, AlignmentConfig):
            pictures["alignments"] = alignments(shown, root, some)
        else:
            pictures["segmentations"] = segmentations(shown, root, some)
    return pictures


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


def quarantined_by_reason(quarantine: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the samples that were replaced, each once, by reason."""
    found: dict[str, list[str]] = {}
    for line in quarantine:
        names = found.setdefault(str(line.get("reason", "unknown")), [])
        name = str(line.get("source_id", "unknown"))
        if name not in names:
            names.append(name)
    return found


def checkpoints(folder: RunFolder) -> dict[str, int]:
    """Return the size in bytes of each checkpoint that was kept, by its name, newest first."""
    return {kept.name: _bytes(kept) for kept in checkpoint.published(folder.checkpoints)}


def _bytes(folder: Path) -> int:
    size = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # retention may be deleting it
            size += file.stat().st_size if file.is_file() else 0
    return size


def known_scores(values: object) -> dict[str, float]:
    """Return the scores that are numbers, by name."""
    given = values if isinstance(values, dict) else {}
    found = {str(name): number(value) for name, value in given.items()}
    return {name: value for name, value in found.items() if value is not None}


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` sample ids, evenly spaced from the first."""
    step = max(1, -(-count // most))
    return list(range(0, count, step))


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of the run folder, empty if it is not there or damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    _log.warning("%s is not a JSON object; the report omits it", path)
    return {}

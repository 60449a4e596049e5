"""Time from opening the shards to the first batch on the training device.

python -m benchmarks.first_batch [--photos DIR] [--turns N] [--json FILE]

100 shards of a few JPEG pairs of CVUSA's sizes, in the page cache. Every turn is a new process; its
imports are left out and named. The batch has 16 pairs; *mapped* adds the panoramas of the first
batch, with the first mapping grid of the process.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.raw_pairs import write_raw
from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.sources.folder import FolderSource

SHARDS, PER_SHARD, BATCH = 100, 2, 16


def first_batch(root: Path) -> dict[str, float]:
    """Seconds until each stage is reached, from before the shards are opened."""
    start = perf_counter()
    import numpy as np
    import torch

    from smdt.data.loader import DataConfig, TrainLoader
    from smdt.data.split import Split
    from smdt.geometry.mapping import GeometryConfig, PanoramaProjection
    from smdt.geometry.view import resize
    from smdt.telemetry.metrics import TrainingMetrics

    torch.set_num_threads(1)  # the decoding threads have the cores
    imported = perf_counter()
    split = Split.open(root, "train")
    opened = perf_counter()
    loader = TrainLoader(
        split,
        DataConfig(shards=str(root)),
        views=("ground", "aerial"),
        global_batch=BATCH,
        seed=0,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=root / "quarantine.jsonl",
        metrics=TrainingMetrics("first_batch", "benchmark", 0),
    )
    with closing(loader.stream(loader.start, 1)) as batches:
        batch = next(batches)
        there = perf_counter()
        geometry = GeometryConfig(extent_m=172.0, elevation_deg=(-32.75, 32.75))
        elevation = np.stack([batch.elevation_min, batch.elevation_max], axis=1)
        resize(batch.images["ground"], geometry.panorama_size)
        mapping = PanoramaProjection(geometry, *geometry.panorama_size)
        mapping(batch.images["aerial"], batch.extent_m, elevation)
        mapped = perf_counter()
    return {
        "imports": imported - start,
        "split open": opened - imported,
        "first batch": there - imported,
        "mapped": mapped - imported,
    }


def main(
    photos: Annotated[
        Path | None, typer.Option(help="Folder with JPEGs of both sizes; else made up.")
    ] = None,
    turns: Annotated[int, typer.Option(min=2)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure the first batch of 100 shards, medians over the turns."""
    with tempfile.TemporaryDirectory() as folder:
        raw, root = Path(folder) / "raw", Path(folder) / "shards"
        raw.mkdir()
        write_raw(raw, SHARDS * PER_SHARD, photos)
        build(FolderSource(raw), root, BuildOptions(samples_per_shard=PER_SHARD))
        command = [sys.executable, "-m", "benchmarks.first_batch", "turn", str(root)]
        found: list[dict[str, float]] = []
        for _ in range(turns):
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found.append(json.loads(answer.stdout))
    table = Table("seconds to", "median", "least", "most")
    for name in found[0]:
        seconds = [turn[name] for turn in found]
        figures = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(name, *(f"{value:.3f}" for value in figures))
    load = os.getloadavg()[0]
    Console().print(table, f"{SHARDS} shards, {turns} processes, load {load:.1f}")
    if json_file is not None:
        json_file.write_text(json.dumps({"load": load, "turns": found}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["turn"]:
        print(json.dumps(first_batch(Path(sys.argv[2]))))
    else:
        typer.run(main)

"""The input pipeline, compared with the decode limit and with other loaders for the same step.

python -m benchmarks.input_pipeline [--photos DIR] [--pairs N] [--rounds N] [--json FILE]

The data: JPEG pairs of CVUSA's sizes (those below --photos under ever new names, or pictures as
hard to decode), and the same pairs as shards of training size; all files are in the page cache.
Every whole pipeline gives float32 [B, 3, 128, 512], ours channels last in memory: the ground
panorama resized by an anti-aliased bilinear filter (torch's, Pillow's or DALI's), the aerial tile
mapped. Ours decodes in 2 threads, the others in 2 workers or threads, and the limit is
libjpeg-turbo in 2 processes on the same bytes, in memory. All take turns. Starting workers and
DALI's graph is left out of the others' time, not of ours.
"""

import json
import multiprocessing
import multiprocessing.pool
import os
import platform
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Annotated

import cv2
import numpy as np
import simplejpeg
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.competitors import BATCH, WORKERS, dali_batches, folder_loader, tar_loader
from benchmarks.mapping import HEIGHT, VIEW, WIDTH
from benchmarks.raw_pairs import SIZES, TRAINING_SIDE, TRAINING_SIZE, write_raw
from data_shards.build.dataset import build
from data_shards.format import layout
from data_shards.format.plan import BuildOptions
from data_shards.sources.folder import FolderSource
from smdt.data.loader import DataConfig, TrainLoader
from smdt.data.split import Split
from smdt.geometry.mapping import GeometryConfig, PanoramaProjection
from smdt.geometry.view import resize
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.ranks.cpu import keep_freed_memory

SHARDS = 4
LIMIT, READ, OURS, FOLDER = "libjpeg-turbo", "smdt, read + CRC + decode", "smdt", "folder + PIL"
SLOWER = 1.2
"""How much longer than the loader needs for a batch a step of the data-wait row takes."""

Batches = Iterator[tuple[Tensor, Tensor]]
Method = Callable[[], Batches | None]


@dataclass(frozen=True)
class DataSet:
    """The same pairs as shards and as files `ground<n>.jpg` and `aerial<n>.jpg`."""

    shards: Path
    files: Path
    pairs: int


def make_data(root: Path, pairs: int, photos: Path | None) -> dict[str, DataSet]:
    """Write the pairs at their original and at training size."""
    raw = root / "raw"
    raw.mkdir()
    write_raw(raw, pairs, photos)
    options = BuildOptions(samples_per_shard=pairs // SHARDS)
    build(FolderSource(raw), root / "original", options, workers=WORKERS)
    small = options.model_copy(update=TRAINING_SIZE)
    build(FolderSource(raw), root / "small", small, workers=WORKERS)
    files = root / "small_files"
    files.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(str(layout.tar_path(root / "small", "train", shard))) as tar:
            for member in tar:
                key, _, part = member.name.partition(".")
                data = tar.extractfile(member)
                if part in {"ground.jpg", "aerial.jpg"} and data is not None:
                    name = f"{part.removesuffix('.jpg')}{int(key.rpartition('-')[2])}.jpg"
                    (files / name).write_bytes(data.read())
    return {
        "original size": DataSet(root / "original", raw, pairs),
        "training size": DataSet(root / "small", files, pairs),
    }


def train_loader(data: DataSet) -> TrainLoader:
    """Open the shards as training does."""
    return TrainLoader(
        Split.open(data.shards, "train"),
        DataConfig(shards=str(data.shards)),
        views=("ground", "aerial"),
        global_batch=BATCH,
        seed=0,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=data.shards / "quarantine.jsonl",
        metrics=TrainingMetrics("input_pipeline", "benchmark", 0),
    )


def ours(data: DataSet) -> Batches:
    """Our epoch, with what a stage does to it on the training device."""
    geometry = GeometryConfig(extent_m=VIEW.extent_m, elevation_deg=VIEW.elevation_deg)
    mapping = PanoramaProjection(geometry, HEIGHT, WIDTH)
    loader = train_loader(data)
    with closing(loader.stream(loader.start, 1)) as batches:
        for batch in batches:
            elevation = np.stack([batch.elevation_min, batch.elevation_max], axis=1)
            ground = resize(batch.images["ground"], (HEIGHT, WIDTH)).float()
            yield ground, mapping(batch.images["aerial"], batch.extent_m, elevation)


def read_and_decode(data: DataSet) -> None:
    """Our epoch up to decoded images."""
    loader = train_loader(data)
    with closing(loader.stream(loader.start, 1)) as batches:
        for _ in batches:
            pass


def wait_share(data: DataSet, step_seconds: float) -> float:
    """Wait for data in an epoch of steps that need no processor, over their time."""
    loader, waited = train_loader(data), 0.0
    with closing(loader.stream(loader.start, 1)) as batches:
        next(batches)
        for _ in range(loader.steps_per_epoch - 1):
            sleep(step_seconds)
            begin = perf_counter()
            next(batches)
            waited += perf_counter() - begin
    return waited / (step_seconds * (loader.steps_per_epoch - 1))


_in_memory: dict[Path, list[bytes]] = {}


def decode_half(folder: Path, half: int) -> None:
    """Decode every other file of a folder, from memory after the first time."""
    if folder not in _in_memory:
        files = sorted(folder.glob("*.jpg"))
        _in_memory[folder] = [path.read_bytes() for path in files]
    for encoded in _in_memory[folder][half::WORKERS]:
        simplejpeg.decode_jpeg(encoded)


def decode_all(pool: multiprocessing.pool.Pool, data: DataSet) -> None:
    """The limit: one half of the files in each process."""
    pool.map(partial(decode_half, data.files), range(WORKERS), chunksize=1)


def methods(data: DataSet, pool: multiprocessing.pool.Pool) -> dict[str, Method]:
    """Return what is measured, by name: each is an epoch."""
    side = SIZES["aerial"][0] if data.files.name == "raw" else TRAINING_SIDE
    folder = folder_loader(data.files, data.pairs, side)
    tars = tar_loader(data.shards, SHARDS, side)
    return {
        LIMIT: partial(decode_all, pool, data),
        READ: partial(read_and_decode, data),
        OURS: partial(ours, data),
        FOLDER: partial(iter, folder),
        "webdataset + PIL": partial(iter, tars),
        "DALI reader": dali_batches(data.shards, SHARDS, data.pairs // BATCH, side),
    }


def mean_panoramas(batches: Iterable[tuple[Tensor, Tensor]], pairs: int) -> Tensor:
    """[2, 3, H, W], over all pairs: the same in any order."""
    total, count = torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.float64), 0
    for views in batches:
        assert all(view.dtype == torch.float32 for view in views)
        total += torch.stack([view.double().sum(0) for view in views])
        count += len(views[0])
    assert count == pairs, f"{count} of {pairs} pairs"
    return total / count


def check_agreement(candidates: dict[str, Method], pairs: int) -> dict[str, float]:
    """Return how far each pipeline's mean panorama is from ours, in levels of 255 on average."""
    means = {}
    for name, method in candidates.items():
        if (batches := method()) is not None:
            means[name] = mean_panoramas(batches, pairs)
    apart = {name: float((mean - means[OURS]).abs().mean()) for name, mean in means.items()}
    assert max(apart.values()) < 1, apart
    return apart


def cpu_seconds() -> float:
    """CPU time of this process and of the workers that live."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return process_time() + ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Turns:
    """One entry a turn."""

    pairs_per_second: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """Seconds of a pair, summed over all processes: least affected by a busy machine."""


def take_turn(method: Method, pairs: int, turns: Turns) -> None:
    """Time one epoch."""
    cpu, begin = cpu_seconds(), perf_counter()
    batches = method()
    if batches is not None:
        for _ in batches:
            pass
    turns.pairs_per_second.append(pairs / (perf_counter() - begin))
    turns.cpu_ms.append(1e3 * (cpu_seconds() - cpu) / pairs)


def median(values: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def ratios(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of the quotients, turn by turn."""
    return median([a / b for a, b in zip(above, below, strict=True)])


Measured = dict[str, dict[str, Turns]]
"""By data set and by method."""


def figures_of(measured: Measured) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By "data, method": each figure's median and quartiles."""
    folder = measured["original size"][FOLDER].pairs_per_second
    figures = {}
    for name, by_method in measured.items():
        limit = by_method[LIMIT]
        for method, turns in by_method.items():
            figures[f"{name}, {method}"] = {
                "pairs_per_second": median(turns.pairs_per_second),
                "of_limit": ratios(turns.pairs_per_second, limit.pairs_per_second),
                "times_folder": ratios(turns.pairs_per_second, folder),
                "cpu_ms": median(turns.cpu_ms),
                "cpu_of_limit": ratios(limit.cpu_ms, turns.cpu_ms),
            }
    return figures


def table_of(figures: dict[str, dict[str, tuple[float, float, float]]]) -> Table:
    """One row a method."""
    table = Table(
        "method", "pairs/s", "of the limit", "x folder, original", "CPU ms", "CPU, of the limit"
    )
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row['pairs_per_second'][0]:.0f}",
            "{:.0%} ({:.0%} to {:.0%})".format(*row["of_limit"]),
            "{:.2f} ({:.2f} to {:.2f})".format(*row["times_folder"]),
            f"{row['cpu_ms'][0]:.2f}",
            "{:.0%} ({:.0%} to {:.0%})".format(*row["cpu_of_limit"]),
        )
    return table


def main(
    photos: Annotated[
        Path | None, typer.Option(help="Folder with JPEGs of both sizes; else made up.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="A multiple of 64.")] = 256,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each method.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure whole input pipelines, medians (quartiles) over the turns."""
    if pairs % (SHARDS * BATCH):
        raise typer.BadParameter(f"--pairs must be a multiple of {SHARDS * BATCH}.")
    torch.set_num_threads(1)  # the decoding threads have the cores
    keep_freed_memory()  # as ranks do
    cv2.setNumThreads(1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.competitors"])
    with tempfile.TemporaryDirectory() as folder, context.Pool(WORKERS) as pool:
        sets = make_data(Path(folder), pairs, photos)
        candidates = {name: methods(data, pool) for name, data in sets.items()}
        apart = {name: check_agreement(each, pairs) for name, each in candidates.items()}
        measured = {name: {method: Turns() for method in candidates[name]} for name in sets}
        waits: dict[str, list[float]] = {name: [] for name in sets}
        for _ in range(rounds):
            for name, data in sets.items():
                for method, epoch in candidates[name].items():
                    take_turn(epoch, pairs, measured[name][method])
                seconds = BATCH / measured[name][READ].pairs_per_second[-1]
                waits[name].append(wait_share(data, SLOWER * seconds))
    figures = figures_of(measured)
    console = Console(width=130)
    console.print(table_of(figures))
    for name, shares in waits.items():
        middle, low, high = median(shares)
        console.print(
            f"data wait, {name}: {middle:.1%} ({low:.1%} to {high:.1%}) of a step that takes "
            f"{SLOWER} times what the loader does"
        )
    load = os.getloadavg()[0]
    console.print(f"{pairs} pairs, batches of {BATCH}, {rounds} turns, load {load:.1f}")
    if json_file is not None:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": load}
        written = {
            "machine": machine,
            "pairs": pairs,
            "rounds": rounds,
            "results": figures,
            "data_wait": waits,
            "levels_from_ours": apart,
        }
        json_file.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

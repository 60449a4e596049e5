"""Building shards with their decode check, against bare decoding of the same bytes.

python -m benchmarks.shard_build [--photos DIR] [--pairs N] [--rounds N] [--json FILE]

The raw data is a folder of JPEG pairs of CVUSA's sizes, aerial 750x750 and ground 224x1232: those
below --photos under ever new names, or pictures as hard to decode. One process and then two, which
have started and imported everything, take turns at: decoding the files, which are in memory, with
libjpeg-turbo (the decode limit of the cores) and with Pillow; shards that keep the bytes, from
reading the files to syncing tar and index; the same with finalizing (one process only); shards of
training size.
"""

import json
import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated

import PIL
import simplejpeg
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.raw_pairs import SIZES, TRAINING_SIZE, write_raw
from data_shards.build.dataset import build, plan_build
from data_shards.build.executor import no_progress
from data_shards.build.writer import SLOW_IMPORTS, write_shard
from data_shards.format.plan import BuildOptions, ShardTask
from data_shards.sources.folder import FolderSource

TASKS = 2
PROCESSES = (1, 2)
TURBO, PILLOW = "libjpeg-turbo", "Pillow"
SHARDS, FINALIZED = "shards", "finalized"

Files = dict[int, list[bytes]]
Method = Callable[[ShardTask], None]


_files: Files = {}


def load(root: Path, pairs: int) -> None:
    """Take the files into the memory of a worker."""
    for row in range(pairs):
        _files[row] = [(root / f"{view}{row}.jpg").read_bytes() for view in SIZES]


def decode_turbo(task: ShardTask) -> None:
    """The limit: libjpeg-turbo as `data_shards.format.images` calls it."""
    for row in task.rows:
        for data in _files[row]:
            simplejpeg.decode_jpeg(data)


def decode_pillow(task: ShardTask) -> None:
    """Decode as most data loaders do."""
    for row in task.rows:
        for data in _files[row]:
            Image.open(BytesIO(data)).load()


def write(source: FolderSource, options: BuildOptions, task: ShardTask) -> None:
    """One shard."""
    with tempfile.TemporaryDirectory() as out:
        (Path(out) / task.split).mkdir()
        write_shard(source, options, Path(out), task, no_progress)


def build_all(source: FolderSource, options: BuildOptions, _: ShardTask) -> None:
    """All shards and the manifest, in this process."""
    with tempfile.TemporaryDirectory() as out:
        build(source, out, options, workers=1)


def methods(source: FolderSource, rows: int) -> dict[str, Method]:
    """Return what is measured, by name: each is given a shard's task."""
    per_shard = -(-rows // TASKS)
    kept = BuildOptions(samples_per_shard=per_shard)
    small: dict[str, Method] = {
        f"small, {name}": partial(
            write, source, kept.model_copy(update=TRAINING_SIZE | {"filter": name})
        )
        for name in ("area", "lanczos")
    }
    large: dict[str, Method] = {
        TURBO: decode_turbo,
        PILLOW: decode_pillow,
        SHARDS: partial(write, source, kept),
        FINALIZED: partial(build_all, source, kept),
    }
    return large | small


@dataclass(frozen=True)
class Turns:
    """One entry a turn."""

    pairs_per_second: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """Seconds of a pair, summed over all processes: least affected by a busy machine."""


def timed(method: Method, task: ShardTask) -> float:
    """Call a method; return the seconds of CPU that it took."""
    begin = process_time()
    method(task)
    return process_time() - begin


def measure(
    root: Path, pairs: int, processes: int, rounds: int, source: FolderSource
) -> dict[str, Turns]:
    """Time the methods by turns, after one turn of warming up."""
    options = BuildOptions(samples_per_shard=-(-pairs // TASKS))
    tasks = plan_build(source, options).tasks("train")
    candidates = methods(source, pairs)
    if processes > 1:
        del candidates[FINALIZED]
    turns = {name: Turns() for name in candidates}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *SLOW_IMPORTS])
    with context.Pool(processes, load, (root, pairs)) as pool:
        for turn in range(rounds + 1):
            for name, method in candidates.items():
                given = tasks[:1] if name == FINALIZED else tasks
                begin = perf_counter()
                cpu = sum(pool.map(partial(timed, method), given, chunksize=1))
                if turn:
                    turns[name].pairs_per_second.append(pairs / (perf_counter() - begin))
                    turns[name].cpu_ms.append(1000 * cpu / pairs)
    return turns


def summary(turns: dict[str, Turns]) -> dict[str, dict[str, float]]:
    """Medians and quartiles; a share of the limit is taken within a turn, where both are alike."""
    result: dict[str, dict[str, float]] = {}
    limit = turns[TURBO]
    for name, each in turns.items():
        rates, limits = each.pairs_per_second, limit.pairs_per_second
        share = [rate / most for rate, most in zip(rates, limits, strict=True)]
        cpu_share = [least / cpu for cpu, least in zip(each.cpu_ms, limit.cpu_ms, strict=True)]
        figures = {
            "pairs_per_second": rates,
            "of_limit": share,
            "cpu_ms": each.cpu_ms,
            "cpu_of_limit": cpu_share,
        }
        result[name] = {}
        for figure, values in figures.items():
            low, middle, high = statistics.quantiles(values, n=4)
            result[name] |= {
                figure: middle,
                f"{figure}_quartile_low": low,
                f"{figure}_quartile_high": high,
            }
    return result


def spread(row: dict[str, float], figure: str) -> str:
    """As `61% (58% to 64%)`."""
    values = (row[f"{figure}{end}"] for end in ("", "_quartile_low", "_quartile_high"))
    return "{:.0%} ({:.0%} to {:.0%})".format(*values)


def main(
    photos: Annotated[
        Path | None, typer.Option(help="Folder with JPEGs of both sizes; else made up.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=TASKS, help="Pairs of the raw data.")] = 200,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each method.")] = 9,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure shard building against the decode limit, medians (quartiles) over the turns."""
    table = Table("", "method", "pairs/s", "of the limit", "CPU ms", "of the limit")
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_raw(root, pairs, photos)
        size = sum(path.stat().st_size for path in root.glob("*.jpg")) / pairs
        source = FolderSource(root)
        for processes in PROCESSES:
            figures = summary(measure(root, pairs, processes, rounds, source))
            for name, row in figures.items():
                table.add_row(
                    str(processes),
                    name,
                    f"{row['pairs_per_second']:.0f}",
                    spread(row, "of_limit"),
                    f"{row['cpu_ms']:.2f}",
                    spread(row, "cpu_of_limit"),
                )
            results.append({"processes": processes, "methods": figures})
    console = Console()
    console.print(table)
    load_average = os.getloadavg()[0]
    console.print(
        f"{pairs} pairs of {size / 1000:.0f} kB, {rounds} turns, load {load_average:.1f}, "
        f"simplejpeg {simplejpeg.__version__}"
    )
    if json_file is not None:
        machine = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load": load_average,
            "simplejpeg": simplejpeg.__version__,
            "pillow": PIL.__version__,
        }
        figures_of_run = {
            "machine": machine,
            "pairs": pairs,
            "bytes_per_pair": size,
            "rounds": rounds,
            "results": results,
        }
        json_file.write_text(json.dumps(figures_of_run, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

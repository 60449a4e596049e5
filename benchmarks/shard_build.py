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
from functools import partial
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import PIL
import simplejpeg
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from data_shards.build import build
from data_shards.executor import no_progress
from data_shards.plan import BuildOptions, BuildPlan, ShardTask
from data_shards.sources.folder import FolderSource
from data_shards.writer import SLOW_IMPORTS, write_shard

SIZES = {"aerial": (750, 750), "ground": (224, 1232)}
TASKS = 2
PROCESSES = (1, 2)
TURBO, PILLOW, SHARDS = "libjpeg-turbo", "Pillow", "shards, bytes kept"
FINALIZED = "the same, finalized"
SMALL = {"ground_size": (128, 512), "aerial_size": 384}

Files = dict[int, list[bytes]]
Method = Callable[[ShardTask], None]


def picture(height: int, width: int, seed: int) -> bytes:
    """A JPEG about as large as a photograph's: noise at all scales."""
    noise = np.random.default_rng(seed)
    levels = 128 + noise.normal(0, 7, (height, width, 1)).repeat(3, axis=2)
    for octave in range(2, 9):
        grain = noise.integers(0, 256, (2 + (height >> octave), 2 + (width >> octave), 3), np.uint8)
        smooth = Image.fromarray(grain).resize((width, height), Image.Resampling.BICUBIC)
        levels += (np.asarray(smooth) - 127.5) * octave / 24
    buffer = BytesIO()
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_raw(root: Path, pairs: int, photos: Path | None) -> None:
    """Write a folder of pairs.

    Raises:
        BadParameter: `photos` has none of a size.
    """
    for view, (height, width) in SIZES.items():
        if photos is None:
            data = [picture(height, width, seed) for seed in range(min(pairs, 20))]
        else:
            files = sorted(photos.rglob("*.jpg"))
            data = [p.read_bytes() for p in files if Image.open(p).size == (width, height)]
        if not data:
            raise typer.BadParameter(f"{photos} has no JPEG of {height}x{width}.")
        for row in range(pairs):
            (root / f"{view}{row}.jpg").write_bytes(data[row % len(data)])
    rows = [f"ground{row}.jpg,aerial{row}.jpg" for row in range(pairs)]
    (root / "train.csv").write_text("\n".join(["ground,aerial", *rows]) + "\n")


_files: Files = {}


def load(root: Path, pairs: int) -> None:
    """Take the files into the memory of a worker."""
    for row in range(pairs):
        _files[row] = [(root / f"{view}{row}.jpg").read_bytes() for view in SIZES]


def decode_turbo(task: ShardTask) -> None:
    """The limit: libjpeg-turbo as `data_shards.images` calls it."""
    for row in task.rows:
        for data in _files[row]:
            simplejpeg.decode_jpeg(data)


def decode_pillow(task: ShardTask) -> None:
    """What most data loaders do."""
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
        f"shards, training size, {name}": partial(
            write, source, kept.model_copy(update=SMALL | {"filter": name})
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


def measure(
    root: Path, pairs: int, processes: int, rounds: int, source: FolderSource
) -> dict[str, list[float]]:
    """Pairs a second of each method, one entry a turn, after one turn of warming up."""
    options = BuildOptions(samples_per_shard=-(-pairs // TASKS))
    tasks = BuildPlan.of(source, options).tasks("train")
    candidates = methods(source, pairs)
    if processes > 1:
        del candidates[FINALIZED]
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *SLOW_IMPORTS])
    with context.Pool(processes, load, (root, pairs)) as pool:
        for turn in range(rounds + 1):
            for name, method in candidates.items():
                begin = perf_counter()
                pool.map(method, tasks[:1] if name == FINALIZED else tasks, chunksize=1)
                if turn:
                    rates[name].append(pairs / (perf_counter() - begin))
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians and quartiles; the share of the limit is the median over turns of the ratio."""
    result = {}
    for name, each in rates.items():
        low, middle, high = statistics.quantiles(each, n=4)
        share = [ours / limit for ours, limit in zip(each, rates[TURBO], strict=True)]
        share_low, share_middle, share_high = statistics.quantiles(share, n=4)
        result[name] = {
            "pairs_per_second": middle,
            "quartile_low": low,
            "quartile_high": high,
            "of_limit": share_middle,
            "of_limit_quartile_low": share_low,
            "of_limit_quartile_high": share_high,
        }
    return result


def main(
    photos: Annotated[
        Path | None, typer.Option(help="Folder with JPEGs of both sizes; else made up.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=TASKS, help="Pairs of the raw data.")] = 200,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each method.")] = 9,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure shard building against the decode limit, in pairs a second."""
    table = Table("processes", "method", "pairs/s", "quartiles", "of the limit", "quartiles")
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
                    f"{row['quartile_low']:.0f} to {row['quartile_high']:.0f}",
                    f"{row['of_limit']:.0%}",
                    f"{row['of_limit_quartile_low']:.0%} to {row['of_limit_quartile_high']:.0%}",
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

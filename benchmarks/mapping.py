"""Mapping of aerial tiles to panoramas: ours, per-image numpy, OpenCV; the same work on each.

python -m benchmarks.mapping [--tile FILE] [--side S] [--json FILE]

Every method starts from the same batch of uint8 tiles and ends with the same float32 [B, 3, H, W],
channels last in memory, its sampling positions made beforehand. A fourth row is OpenCV alone, to
uint8 [H, W, 3] each. The methods take turns, so that a disturbance of the machine meets all of
them.
"""

import json
import math
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, cast

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from smdt.geometry.mapping import GeometryConfig, PanoramaProjection, Projection
from smdt.geometry.radius import GroundCamera, mixed_radius, polar_radius

HEIGHT, WIDTH, TILES = 128, 512, 8
VIEW = GroundCamera(camera_height_m=2.0, extent_m=172.0, elevation_deg=(-32.75, 32.75))
MAPPINGS: tuple[Projection, ...] = ("polar", "mixed")
OURS, NUMPY, OPENCV, OPENCV_BARE = "smdt", "numpy", "cv2.remap", "cv2.remap, uint8 HWC"

Tile = NDArray[np.uint8]
Panoramas = NDArray[np.float32]
Positions = NDArray[np.float64]
Method = Callable[[list[Tile]], Panoramas | list[Tile]]


def positions(mapping: Projection, side: int) -> tuple[Positions, Positions]:
    """Column and row, [H, W] each, of the aerial pixel that every panorama pixel samples."""
    rows = np.arange(HEIGHT, dtype=np.float64)
    if mapping == "polar":
        radius = polar_radius(rows, HEIGHT, side)
    else:
        radius = mixed_radius(rows, HEIGHT, side, VIEW)
    azimuth = 2 * math.pi * np.arange(WIDTH) / WIDTH
    return side / 2 - np.outer(radius, np.sin(azimuth)), side / 2 + np.outer(
        radius, np.cos(azimuth)
    )


def numpy_bilinear(tile: Tile, x: Positions, y: Positions) -> Positions:
    """[H, W, 3]: four taps by fancy indexing, outside is 0: what published loaders do."""
    side = len(tile)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    result = np.zeros((*x.shape, 3))
    for row in (top, top + 1):
        for column in (left, left + 1):
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            weight = (1 - np.abs(x - column)) * (1 - np.abs(y - row)) * inside
            pixel = tile[row.clip(0, side - 1), column.clip(0, side - 1)]
            result += weight[..., None] * pixel
    return result


def methods(mapping: Projection, side: int) -> dict[str, Method]:
    """Return what is measured: each maps a batch of tiles."""
    x, y = positions(mapping, side)
    map_x, map_y = x.astype(np.float32), y.astype(np.float32)
    module = PanoramaProjection(GeometryConfig(mapping=mapping), HEIGHT, WIDTH)

    def ours(tiles: list[Tile]) -> Panoramas:
        batch = [torch.from_numpy(tile) for tile in tiles]
        count = len(batch)
        result = module(
            batch, np.full(count, VIEW.extent_m), np.tile(VIEW.elevation_deg, (count, 1))
        )
        return cast(Panoramas, result.numpy())

    def exact(tiles: list[Tile]) -> Panoramas:
        result = np.empty((len(tiles), HEIGHT, WIDTH, 3), np.float32)
        for tile, panorama in zip(tiles, result, strict=True):
            np.copyto(panorama, numpy_bilinear(tile, x, y))
        return result.transpose(0, 3, 1, 2)

    def remap(tile: Tile) -> Tile:
        return cast(Tile, cv2.remap(tile, map_x, map_y, cv2.INTER_LINEAR))

    def opencv(tiles: list[Tile]) -> Panoramas:
        result = np.empty((len(tiles), HEIGHT, WIDTH, 3), np.float32)
        for tile, panorama in zip(tiles, result, strict=True):
            np.copyto(panorama, remap(tile))
        return result.transpose(0, 3, 1, 2)

    return {
        OURS: ours,
        NUMPY: exact,
        OPENCV: opencv,
        OPENCV_BARE: lambda tiles: [remap(tile) for tile in tiles],
    }


def differences(candidates: dict[str, Method], tiles: list[Tile]) -> dict[str, float]:
    """Return the largest difference to numpy's float64 result, in levels of 255."""
    mapped = {
        name: np.asarray(candidates[name](tiles), np.float64) for name in (NUMPY, OURS, OPENCV)
    }
    found = {name: float(np.abs(mapped[name] - mapped[NUMPY]).max()) for name in (OURS, OPENCV)}
    assert found[OURS] < 1e-3, "the mapping is not what it should be"
    return found


@dataclass(frozen=True)
class Times:
    """Milliseconds a tile, one entry a turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of all threads: least affected by a busy machine."""


def measure(candidates: dict[str, Method], tiles: list[Tile], rounds: int) -> dict[str, Times]:
    """Time the methods by turns, after one turn of warming up."""
    times = {name: Times() for name in candidates}
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            wall, cpu = perf_counter(), process_time()
            call(tiles)
            if turn:
                times[name].wall.append(1e3 * (perf_counter() - wall) / len(tiles))
                times[name].cpu.append(1e3 * (process_time() - cpu) / len(tiles))
    return times


def summary(times: dict[str, Times]) -> dict[str, dict[str, float]]:
    """Medians and quartiles, and how many of our times each method takes."""
    ours = times[OURS]
    result = {}
    for name, each in times.items():
        low, middle, high = statistics.quantiles(each.wall, n=4)
        cpu = statistics.median(each.cpu)
        result[name] = {
            "wall_ms": middle,
            "wall_quartile_low_ms": low,
            "wall_quartile_high_ms": high,
            "cpu_ms": cpu,
            "wall_times_ours": middle / statistics.median(ours.wall),
            "cpu_times_ours": cpu / statistics.median(ours.cpu),
        }
    return result


def load_tiles(path: Path | None, side: int) -> list[Tile]:
    """Read a tile as uint8 [S, S, 3] and turn it for variety, or make random ones."""
    if path is None:
        return list(np.random.default_rng(0).integers(0, 256, (TILES, side, side, 3), np.uint8))
    tile = np.asarray(Image.open(path).convert("RGB"))
    return [np.rot90(tile, turn).copy() for turn in range(TILES)]


def main(
    tile: Annotated[Path | None, typer.Option(help="A square aerial image; else random.")] = None,
    side: Annotated[int, typer.Option(help="Side of the random images.")] = 750,
    rounds: Annotated[int, typer.Option(help="Turns of each method.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure the mapping of tiles to 128x512, per tile, against numpy and OpenCV."""
    tiles = load_tiles(tile, side)
    side = len(tiles[0])
    table = Table("mapping", "threads", "method", "ms", "quartiles", "x ours", "CPU ms", "x ours")
    results: list[dict[str, object]] = []
    for mapping in MAPPINGS:
        candidates = methods(mapping, side)
        difference = differences(candidates, tiles)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            figures = summary(measure(candidates, tiles, rounds))
            for name, row in figures.items():
                low, high = row["wall_quartile_low_ms"], row["wall_quartile_high_ms"]
                table.add_row(
                    mapping,
                    str(threads),
                    name,
                    f"{row['wall_ms']:.2f}",
                    f"{low:.2f} to {high:.2f}",
                    f"{row['wall_times_ours']:.2f}",
                    f"{row['cpu_ms']:.2f}",
                    f"{row['cpu_times_ours']:.2f}",
                )
            results.append(
                {
                    "mapping": mapping,
                    "threads": threads,
                    "methods": figures,
                    "largest_difference": difference,
                }
            )
    console = Console()
    console.print(table)
    load = os.getloadavg()[0]
    console.print(f"{side}x{side} to {HEIGHT}x{WIDTH}, {rounds} turns of {TILES}, load {load:.1f}")
    if json_file is not None:
        machine = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load": load,
            "torch": torch.__version__,
            "opencv": cv2.__version__,
        }
        json_file.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

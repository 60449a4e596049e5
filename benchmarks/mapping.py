"""Mapping of one aerial tile to a panorama: ours, per-image numpy, OpenCV; the same work on each.

python -m benchmarks.mapping [--tile FILE] [--side S] [--json FILE]

Every method starts from the same uint8 tile and ends with the same float32 [3, H, W] panorama, its
sampling positions made beforehand. A fourth row is OpenCV alone, to uint8 [H, W, 3]. The methods
take turns, so that a disturbance of the machine meets all of them.
"""

import json
import math
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from smdt.geometry.mapping import GeometryConfig, Mapping, PanoramaMapping
from smdt.geometry.radius import GroundView, mixed_radius, polar_radius

HEIGHT, WIDTH = 128, 512
VIEW = GroundView(camera_height_m=2.0, extent_m=172.0, elevation_deg=(-32.75, 32.75))
MAPPINGS: tuple[Mapping, ...] = ("polar", "mixed")
OURS, NUMPY, OPENCV, OPENCV_BARE = "smdt", "numpy", "cv2.remap", "cv2.remap, uint8 HWC"

Panorama = NDArray[np.float32]
Positions = NDArray[np.float64]


def positions(mapping: Mapping, side: int) -> tuple[Positions, Positions]:
    """Column and row, [H, W] each, of the aerial pixel that every panorama pixel looks at."""
    rows = np.arange(HEIGHT, dtype=np.float64)
    if mapping == "polar":
        radius = polar_radius(rows, HEIGHT, side)
    else:
        radius = mixed_radius(rows, HEIGHT, side, VIEW)
    azimuth = 2 * math.pi * np.arange(WIDTH) / WIDTH
    return side / 2 - np.outer(radius, np.sin(azimuth)), side / 2 + np.outer(
        radius, np.cos(azimuth)
    )


def numpy_bilinear(tile: NDArray[np.uint8], x: Positions, y: Positions) -> Panorama:
    """Four taps by fancy indexing, outside is 0: what published loaders do for every image."""
    side = len(tile)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    result = np.zeros((*x.shape, 3))
    for row in (top, top + 1):
        for column in (left, left + 1):
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            weight = (1 - np.abs(x - column)) * (1 - np.abs(y - row)) * inside
            pixel = tile[row.clip(0, side - 1), column.clip(0, side - 1)]
            result += weight[..., None] * pixel
    return np.ascontiguousarray(result.transpose(2, 0, 1), dtype=np.float32)


def methods(mapping: Mapping, tile: NDArray[np.uint8]) -> dict[str, Callable[[], Panorama]]:
    """Return what is measured: each call maps the tile once."""
    x, y = positions(mapping, len(tile))
    map_x, map_y = x.astype(np.float32), y.astype(np.float32)
    module = PanoramaMapping(GeometryConfig(mapping=mapping), HEIGHT, WIDTH)
    batch = [torch.from_numpy(tile)]
    extent_m, elevation_deg = np.array([VIEW.extent_m]), np.array([VIEW.elevation_deg])

    def ours() -> Panorama:
        panorama: Panorama = module(batch, extent_m, elevation_deg)[0].numpy()
        return panorama

    def opencv_bare() -> Panorama:
        return cv2.remap(tile, map_x, map_y, cv2.INTER_LINEAR)  # type: ignore[return-value]

    def opencv() -> Panorama:
        panorama = torch.from_numpy(opencv_bare()).permute(2, 0, 1)
        result: Panorama = panorama.to(torch.float32, memory_format=torch.contiguous_format).numpy()
        return result

    return {
        OURS: ours,
        NUMPY: lambda: numpy_bilinear(tile, x, y),
        OPENCV: opencv,
        OPENCV_BARE: opencv_bare,
    }


def check_equal(candidates: dict[str, Callable[[], Panorama]]) -> dict[str, float]:
    """Return the largest difference of each method to numpy's float64 result, in levels of 255."""
    exact = candidates[NUMPY]()
    differences = {name: float(np.abs(candidates[name]() - exact).max()) for name in (OURS, OPENCV)}
    assert differences[OURS] < 1e-3, "the mapping is not what it should be"
    return differences


def measure(candidates: dict[str, Callable[[], Panorama]], rounds: int) -> dict[str, list[float]]:
    """Time the methods by turns: seconds of each call, after two rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 2):
        for name, call in candidates.items():
            start = perf_counter()
            call()
            if turn >= 2:
                seconds[name].append(perf_counter() - start)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles in milliseconds, and how many of our times each one takes."""
    ours = statistics.median(seconds[OURS])
    result = {}
    for name, times in seconds.items():
        low, middle, high = (1e3 * q for q in statistics.quantiles(times, n=4))
        result[name] = {
            "median_ms": middle,
            "quartile_low_ms": low,
            "quartile_high_ms": high,
            "times_ours": middle / (1e3 * ours),
        }
    return result


def load_tile(path: Path | None, side: int) -> NDArray[np.uint8]:
    """Read a tile as uint8 [S, S, 3], or make a random one."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.array(Image.open(path).convert("RGB"))


def main(
    tile: Annotated[Path | None, typer.Option(help="A square aerial image; else random.")] = None,
    side: Annotated[int, typer.Option(help="Side of the random image.")] = 750,
    rounds: Annotated[int, typer.Option(help="Calls of each method.")] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure the mapping of one tile to 128x512 against numpy and OpenCV."""
    pixels = load_tile(tile, side)
    table = Table("mapping", "threads", "method", "median ms", "quartiles", "times ours")
    results: list[dict[str, object]] = []
    for mapping in MAPPINGS:
        candidates = methods(mapping, pixels)
        differences = check_equal(candidates)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            figures = summary(measure(candidates, rounds))
            for name, row in figures.items():
                spread = f"{row['quartile_low_ms']:.2f} to {row['quartile_high_ms']:.2f}"
                table.add_row(mapping, str(threads), name, f"{row['median_ms']:.2f}", spread,
                              f"{row['times_ours']:.2f}")  # fmt: skip
            results.append(
                {"mapping": mapping, "threads": threads, "methods": figures,
                 "largest_difference": differences}
            )  # fmt: skip
    console = Console()
    console.print(table)
    load = os.getloadavg()[0]
    console.print(
        f"{len(pixels)}x{len(pixels)} to {HEIGHT}x{WIDTH}, {rounds} calls, load {load:.1f}"
    )
    if json_file is not None:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                   "torch": torch.__version__, "opencv": cv2.__version__, "load": load}  # fmt: skip
        json_file.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

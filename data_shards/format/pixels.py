"""Pixel statistics: mean and deviation of a view, and a digest that finds copies."""

import hashlib
import math
from functools import lru_cache

import google_crc32c
import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

GRID_STEP = 8
"""One pixel of 8 x 8 counts: the decoder then stays the cost of a build."""

STRIPE_ROWS = 32
DIGEST_BYTES = 16
CHANNELS = 3
LEVELS = np.arange(256, dtype=np.int64)


class ViewStatistics(BaseModel):
    """Pixel statistics of a view over a split, red, green, blue, in 0 to 255."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class PixelSums(BaseModel):
    """Sums over pixels, as integers, so that the order of adding never shows.

    `sums` and `squares` are per channel (red, green, blue).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = 0
    sums: tuple[int, int, int] = (0, 0, 0)
    squares: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def from_histogram(cls, histogram: np.ndarray) -> "PixelSums":
        """Sums of the pixels counted in int64 [3, 256]."""
        red, green, blue = (int(s) for s in histogram @ LEVELS)
        red2, green2, blue2 = (int(s) for s in histogram @ (LEVELS * LEVELS))
        return cls(
            count=int(histogram[0].sum()),
            sums=(red, green, blue),
            squares=(red2, green2, blue2),
        )

    def __add__(self, other: "PixelSums") -> "PixelSums":
        a, b = self, other
        return PixelSums(
            count=a.count + b.count,
            sums=(a.sums[0] + b.sums[0], a.sums[1] + b.sums[1], a.sums[2] + b.sums[2]),
            squares=(
                a.squares[0] + b.squares[0],
                a.squares[1] + b.squares[1],
                a.squares[2] + b.squares[2],
            ),
        )

    def statistics(self) -> ViewStatistics:
        """Mean and (population) standard deviation; `count` must not be 0."""
        channels = [
            _mean_std(self.count, s, q) for s, q in zip(self.sums, self.squares, strict=True)
        ]
        (red, red_std), (green, green_std), (blue, blue_std) = channels
        return ViewStatistics(mean=(red, green, blue), std=(red_std, green_std, blue_std))


def grid_histogram(pixels: np.ndarray) -> np.ndarray:
    """int64 [3, 256]: how often each level occurs on the grid of uint8 [H, W, 3] or [H, W]."""
    height, width = pixels.shape[:2]
    grid = pixels.take(_grid_positions(height), axis=0).take(_grid_positions(width), axis=1)
    if grid.ndim == 2:
        return np.array([np.bincount(grid.ravel(), minlength=256)] * CHANNELS)
    return np.array([np.bincount(grid[:, :, c].ravel(), minlength=256) for c in range(CHANNELS)])


def pixel_digest(pixels: np.ndarray) -> bytes:
    """16 bytes that are equal for equal images, uint8 [H, W, 3] or [H, W].

    It hashes the CRC32C of stripes of rows: hashing the pixels themselves costs as much as decoding
    them. If images differ in a single stripe, their digests are equal with a chance of 2^-32, in
    two 2^-64, in four or more 2^-128. It finds copies; it does not protect against forgery.
    """
    pixels = np.ascontiguousarray(pixels)
    stripes = [
        google_crc32c.value(pixels[top : top + STRIPE_ROWS])
        for top in range(0, len(pixels), STRIPE_ROWS)
    ]
    values = np.array([*pixels.shape, *stripes], dtype="<u8")
    return hashlib.blake2b(values.tobytes(), digest_size=DIGEST_BYTES).digest()


@lru_cache(maxsize=1024)
def _grid_positions(length: int) -> np.ndarray:
    """Return the sampled pixels along a side, as Pillow's nearest filter chooses them."""
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    points = max(1, length // GRID_STEP)
    positions: np.ndarray = np.asarray(line.resize((points, 1), Image.Resampling.NEAREST))[0]
    return positions


def _mean_std(count: int, total: int, squares: int) -> tuple[float, float]:
    # The variance's numerator is an exact integer: nothing cancels.
    return total / count, math.sqrt(count * squares - total * total) / count

"""Mean and standard deviation of a view, exact sums over a grid of pixels."""

import math

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

GRID_STEP = 8
"""One pixel of 8 x 8 counts: the decoder then stays the cost of a build."""

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


def grid_histogram(image: Image.Image) -> np.ndarray:
    """int64 [3, 256]: how often each level occurs on the grid of a decoded RGB or grey image."""
    grid = image.resize(
        (max(1, image.width // GRID_STEP), max(1, image.height // GRID_STEP)),
        Image.Resampling.NEAREST,
    )
    histogram = np.array(grid.histogram(), dtype=np.int64).reshape(-1, 256)
    return np.broadcast_to(histogram, (CHANNELS, 256))


def _mean_std(count: int, total: int, squares: int) -> tuple[float, float]:
    # The variance's numerator is an exact integer: nothing cancels.
    return total / count, math.sqrt(count * squares - total * total) / count

"""Aspect ratios of panoramas, compared with their declared elevations.

A panorama of 360 degrees has as many pixels a degree of elevation as a degree of azimuth, unless it
was resized in one direction. Published data sets resize by up to 1.4, and VIGOR by 2.
"""

import numpy as np
import pyarrow as pa

ELEVATION_TOLERANCE = 1.8
"""Times that a degree may be higher than wide, or wider than high, without a word."""
RESIZE_TOLERANCE = 1.5
"""Times that resizing may stretch an image in one direction without a word."""
RESIZE_LIMIT = 4.0
"""More than that is a mistake, as height and width that are exchanged."""


def elevation_warning(table: pa.Table, elevation: tuple[float, float] | None = None) -> str:
    """Return a warning if panoramas' shapes contradict their elevations, or an empty text.

    Args:
        table: rows of an index.
        elevation: of the lower and upper edge, degrees, where the rows do not say it.
    """
    height, width = (table[f"ground_{side}"].to_numpy() for side in ("height", "width"))
    low, high = (table[f"elevation_{end}"].to_numpy() for end in ("min", "max"))
    if elevation is not None:
        unknown = np.isnan(low) | np.isnan(high)
        low, high = np.where(unknown, elevation[0], low), np.where(unknown, elevation[1], high)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_shape = 360.0 * height / width
        stretch = by_shape / (high - low)
    wrong = np.flatnonzero(np.abs(np.log(stretch)) > np.log(ELEVATION_TOLERANCE))
    if len(wrong) == 0:
        return ""
    first = int(wrong[0])
    return (
        f"{len(wrong)} of {len(table)} panoramas have a shape that contradicts their elevations: "
        f"{table['source_id'][first]} has {width[first]}x{height[first]} pixels, which is "
        f"{by_shape[first]:.1f} degrees high where it was not resized, and its edges are said to "
        f"be at {low[first]:g} and {high[first]:g}; check the images, or correct the elevations."
    )


def stretch_of(size: tuple[int, int], before: tuple[int, int]) -> float:
    """Return how many times resizing stretches one direction more than the other, at least 1.

    Args:
        size: height and width after it.
        before: height and width before it.
    """
    ratio = size[0] * before[1] / (size[1] * before[0])
    return max(ratio, 1.0 / ratio)

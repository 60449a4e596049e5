"""Radius profiles of the mappings: the distance in the aerial image for each panorama row.

A profile gives, for panorama rows (float64, 0 is the top row, fractions allowed), the distance from
the tile's centre in aerial pixels. Infinity means that the row shows no ground. See
docs/mapping.md.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class GroundCamera:
    """A level camera over flat ground."""

    camera_height_m: float
    extent_m: float
    """Side of the aerial tile on the ground."""
    elevation_deg: tuple[float, float]
    """Elevation of the panorama's lower and upper edge; rows are linear in elevation."""


def polar_radius(rows: Rows, height: int, side: int) -> Rows:
    """Radius of the polar mapping (Shi et al. 2019, equation 1): half the side at the top, 0 below.

    Args:
        rows: panorama rows.
        height: rows of the panorama.
        side: rows and columns of the aerial image.
    """
    return np.maximum(side / 2 * (height - 1 - rows) / height, 0.0)


def perspective_radius(rows: Rows, height: int, side: int, view: GroundCamera) -> Rows:
    """Radius at which a row's ray meets the ground, at most half the side; infinite above it."""
    bottom, top = view.elevation_deg
    deg_per_row = (top - bottom) / height
    horizon = top / deg_per_row
    below_horizon_rad = np.radians((rows + 0.5 - horizon) * deg_per_row)
    ground = below_horizon_rad > 0
    cotangent = np.divide(
        1.0, np.tan(below_horizon_rad), out=np.full_like(rows, np.inf), where=ground
    )
    pixels_per_m = side / view.extent_m
    radius = np.clip(view.camera_height_m * cotangent * pixels_per_m, 0.0, side / 2)
    return np.where(ground, radius, np.inf)


def mixed_radius(rows: Rows, height: int, side: int, view: GroundCamera) -> Rows:
    """Polar down to the first row where the perspective radius is not larger, then perspective.

    Continuous and monotone in `rows`, which must ascend. The junction is ours: the paper gives no
    formula for it.
    """
    polar = polar_radius(rows, height, side)
    perspective = perspective_radius(rows, height, side, view)
    past_junction = np.logical_or.accumulate(perspective <= polar)
    return np.where(past_junction, perspective, polar)

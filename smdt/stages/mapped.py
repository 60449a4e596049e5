"""Aerial images of a batch, mapped: each by the extent and the elevations of its own sample.

H rows, W columns.
"""

import numpy as np
from torch import Tensor

from smdt.data.batch import Batch
from smdt.geometry.mapping import PanoramaMapping


def mapped(mapping: PanoramaMapping, batch: Batch, rows: slice) -> Tensor:
    """Return the mapped aerial images of some rows: float32 [rows, 3, H, W], 0 to 255."""
    elevation = np.stack([batch.elevation_min[rows], batch.elevation_max[rows]], axis=1)
    panoramas: Tensor = mapping(batch.images["aerial"][rows], batch.extent_m[rows], elevation)
    return panoramas

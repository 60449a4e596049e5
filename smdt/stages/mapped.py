"""Projection of a batch's aerial images, each by the extent and elevations of its sample.

H rows, W columns.
"""

import logging

import numpy as np
from torch import Tensor

from data_shards.base.errors import DataInputError
from smdt.data.batch import Batch
from smdt.data.split import Split
from smdt.geometry.mapping import GeometryConfig, PanoramaProjection

_log = logging.getLogger(__name__)


def require_mappable(config: GeometryConfig, split: Split) -> None:
    """Check that every tile of a split can be mapped.

    Raises:
        DataInputError: neither the split nor the configuration says its extent or elevations.
    """
    if config.mapping == "polar":
        return
    asked = {
        "extent_m": (config.extent_m, ["extent_m"]),
        "elevation_deg": (config.elevation_deg, ["elevation_min", "elevation_max"]),
    }
    for setting, (configured, columns) in asked.items():
        unknown = np.any([np.isnan(split.column(each)) for each in columns], axis=0).sum()
        if configured is None and unknown:
            raise DataInputError(
                f"{unknown} of the {len(split)} samples of split {split.name!r} in {split.root} "
                f"have no {setting}, which the {config.mapping} mapping needs: set "
                f"geometry.{setting}, or choose the polar mapping."
            )


def warn_of_elevations(config: GeometryConfig, split: Split) -> None:
    """Log panoramas whose shape contradicts the elevations that the mapping takes them to have."""
    warning = "" if config.mapping == "polar" else split.elevation_warning(config.elevation_deg)
    if warning:
        _log.warning("split %s in %s: %s", split.name, split.root, warning)


def mapped(mapping: PanoramaProjection, batch: Batch, rows: slice) -> Tensor:
    """Return the mapped aerial images of some rows: float32 [rows, 3, H, W], 0 to 255."""
    elevation = np.stack([batch.elevation_min[rows], batch.elevation_max[rows]], axis=1)
    panoramas: Tensor = mapping(batch.images["aerial"][rows], batch.extent_m[rows], elevation)
    return panoramas

from dataclasses import dataclass

import numpy as np
import pytest

from data_shards.base.errors import DataInputError
from smdt.geometry.mapping import GeometryConfig
from smdt.stages.mapped import require_mappable

UNKNOWN = float("nan")


@dataclass
class ThreeTiles:
    """What a split says of its tiles; the last one is like all the others, or unknown."""

    extent_m: float = 48.0
    elevation_min: float = -30.0
    elevation_max: float = 30.0
    name, root = "aerial", "data/own"

    def __len__(self) -> int:
        return 3

    def column(self, name: str) -> np.ndarray:
        return np.array([*[getattr(ThreeTiles, name)] * 2, getattr(self, name)])


@pytest.mark.parametrize("mapping", ["perspective", "mixed"])
@pytest.mark.parametrize(
    ("split", "setting", "value"),
    [
        (ThreeTiles(extent_m=UNKNOWN), "extent_m", 50.0),
        (ThreeTiles(elevation_min=UNKNOWN), "elevation_deg", (-30.0, 40.0)),
        (ThreeTiles(elevation_max=UNKNOWN), "elevation_deg", (-30.0, 40.0)),
    ],
)
def test_what_nobody_says_of_a_tile_is_asked_for(mapping, split, setting, value):
    with pytest.raises(DataInputError, match=f"1 of the 3 .* 'aerial' .* geometry.{setting}"):
        require_mappable(GeometryConfig(mapping=mapping), split)
    require_mappable(GeometryConfig(mapping=mapping, **{setting: value}), split)
    require_mappable(GeometryConfig(mapping=mapping), ThreeTiles())
    require_mappable(GeometryConfig(mapping="polar"), split)

"""Statistics of a data set."""

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from data_shards.base.store import Location, location
from data_shards.format import layout
from data_shards.format.duplicates import DuplicateCount
from data_shards.format.index import read_table
from data_shards.format.manifest import SplitEntry, load
from data_shards.format.sample import IMAGES, Kind


class SizeRange(BaseModel):
    """Smallest and largest height and width of an image over a split, pixels."""

    model_config = ConfigDict(frozen=True)

    images: int
    height: tuple[int, int]
    width: tuple[int, int]

    def __str__(self) -> str:
        sides = (
            str(low) if low == high else f"{low}-{high}" for low, high in (self.height, self.width)
        )
        return " x ".join(sides)


class SplitStats(BaseModel):
    """A split in numbers; shares are 0 to 1 of its samples."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    shards: int
    samples: int
    rejected: int
    bytes: int
    sizes: dict[str, SizeRange]
    """By image, those that occur."""
    with_position: float
    """Share with latitude and longitude, or easting and northing."""
    with_heading: float
    with_labels: float
    """Share with a class map."""
    places: int
    """Distinct places (`data_shards.format.places`)."""
    duplicates: dict[str, DuplicateCount] | None
    """By view; None: the data set is older than the count."""


def stats(root: str | Location) -> dict[str, SplitStats]:
    """The numbers of each split, from the manifest and the merged index.

    Raises:
        InputError: `root` is not a finished data set.
        ShardError: the manifest or an index is damaged.
    """
    root = location(root)
    return {
        split: _split_stats(entry, read_table(layout.table_path(root, split)))
        for split, entry in load(root).splits.items()
    }


def _split_stats(entry: SplitEntry, table: pa.Table) -> SplitStats:
    numbers = ("lat", "lon", "utm_e", "utm_n", "heading")
    known = {name: np.isfinite(table[name].to_numpy()) for name in numbers}
    positioned = (known["lat"] & known["lon"]) | (known["utm_e"] & known["utm_n"])
    sizes = {image: _size_range(table, image) for image in IMAGES}
    return SplitStats(
        kind=entry.kind,
        shards=len(entry.shards),
        samples=entry.samples,
        rejected=sum(entry.rejected.values()),
        bytes=entry.bytes,
        sizes={image: size for image, size in sizes.items() if size is not None},
        with_position=float(positioned.mean()),
        with_heading=float(known["heading"].mean()),
        with_labels=float((table["seg_size"].to_numpy() > 0).mean()),
        places=int(table["place"].to_numpy().max()) + 1,
        duplicates=entry.duplicates,
    )


def _size_range(table: pa.Table, image: str) -> SizeRange | None:
    present = table[f"{image}_size"].to_numpy() > 0
    if not present.any():
        return None
    height = table[f"{image}_height"].to_numpy()[present]
    width = table[f"{image}_width"].to_numpy()[present]
    return SizeRange(
        images=int(present.sum()),
        height=(int(height.min()), int(height.max())),
        width=(int(width.min()), int(width.max())),
    )

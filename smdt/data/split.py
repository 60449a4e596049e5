"""A finished split: its index, memory-mapped, and what its files promise to hold."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards.base.errors import DataError, DataInputError, InputError, ShardError
from data_shards.base.store import Location, location, sizes
from data_shards.format import layout, manifest
from data_shards.format.aspect import elevation_warning
from data_shards.format.index import ABSENT, TILES
from data_shards.format.sample import JSON, PARTS
from smdt.data.merged_index import cached_table, local_table
from smdt.data.shard_cache import GIGABYTE, CacheConfig, ShardCache

REMEDIES = {
    "seg": ": make class maps with `smdt segment`",
    "aligned": ": make them with `smdt align`",
}
"""What makes a view that data sets come without."""


class Split:
    """The samples of one split, by sample id: their row in the index, 0..N-1.

    Attributes:
        root: the data set's folder or URL.
        name: of the split.
        data_set: what the manifest calls it, such as "cvusa".
        source: what its samples depend on, such as the area of VIGOR.
        kind: "pairs", "aerial" (a gallery) or "ground" (queries).
        manifest_hash: SHA-256 of the manifest, hexadecimal.
        shards: the manifest's entries by number.
        made: by part, the model that made it from the other parts.
        cache: of a split that is in a store.
    """

    def __init__(
        self,
        root: Location,
        name: str,
        described: manifest.Manifest,
        manifest_hash: str,
        table: pa.Table,
        cache: ShardCache | None,
    ) -> None:
        entry = described.splits[name]
        self.root = root
        self.name = name
        self.data_set = described.name
        self.source: Mapping[str, JSON] = described.source
        self.made: Mapping[str, Mapping[str, JSON]] = described.made
        self.kind = entry.kind
        self.manifest_hash = manifest_hash
        self.shards = {shard.shard: shard for shard in entry.shards}
        self.cache = cache
        self._table = table
        self._columns: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(
        cls, root: str | Location, name: str, cache_config: CacheConfig | None = None
    ) -> "Split":
        """Open a split of a finished data set.

        Args:
            root: its folder or URL.
            name: of the split.
            cache_config: where the files of a store are kept; None is the default place.

        Raises:
            DataInputError: no such folder, manifest or split, or they cannot be read.
            DataError: the manifest or the index is damaged.
        """
        cache = None
        try:
            root = location(root)
            described = manifest.load(root)
            if name not in described.splits:
                there = ", ".join(sorted(described.splits))
                raise DataInputError(f"{root} has no split {name!r}, it has {there}.")
            entry = described.splits[name]
            if isinstance(root, Path):
                table = local_table(root, name, described)
            else:
                cache = ShardCache(cache_config or CacheConfig())
                table = cached_table(root, name, entry.table_sha256, cache)
            manifest_hash = manifest.manifest_hash(root)
        except (ShardError, InputError) as error:
            kind = DataInputError if error.exit_code == DataInputError.exit_code else DataError
            raise kind(str(error)) from None
        except OSError as error:
            raise DataInputError(f"{root} can't be read: {error.strerror}.") from None
        if len(table) != entry.samples:
            raise DataError(
                f"The index of split {name!r} in {root} has {len(table)} samples, its manifest "
                f"says {entry.samples}: run `smdt shards finalize {root}`."
            )
        return cls(root, name, described, manifest_hash, table, cache)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def column(self, name: str) -> NDArray[Any]:
        """A numeric column of the index, [N], read-only and not copied."""
        if name not in self._columns:
            # The index is one record batch, so a column is one piece of the mapped file.
            self._columns[name] = self._table[name].chunk(0).to_numpy(zero_copy_only=True)
        return self._columns[name]

    def key(self, sample_id: int) -> str:
        """The sample's key in its shard."""
        return str(self._table["key"][int(sample_id)].as_py())

    def source_id(self, sample_id: int) -> str:
        """The data set's own name of the sample."""
        return str(self._table["source_id"][int(sample_id)].as_py())

    def names(self, column: Literal["key", "source_id"]) -> list[str]:
        """The keys or the data set's own names of all samples."""
        values: list[str] = self._table[column].to_pylist()
        return values

    def tar(self, sample_id: int) -> Location:
        """The tar that holds the sample."""
        return self.tar_of(int(self.column("shard")[sample_id]))

    def tar_of(self, shard: int) -> Location:
        """The tar of this number."""
        return layout.tar_path(self.root, self.name, shard)

    @cached_property
    def utm(self) -> NDArray[np.float64]:
        """Positions of all samples, easting and northing in metres, [N, 2]; NaN: unknown."""
        return np.stack([self.column("utm_e"), self.column("utm_n")], axis=1)

    @property
    def places(self) -> NDArray[np.int64]:
        """Numbers from 0 that samples of one place share (`format/places.py`), int64 [N]."""
        return self.column("place")

    def aerial_images(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number aerial images: samples of one place share one where its bytes are equal.

        Bytes are compared by size and CRC32C, which at one place tells different images apart. A
        sample without an aerial image has a number of its own.

        Returns:
            int64 [n], from 0.
        """
        size, crc = (self.column(f"aerial_{name}")[sample_ids] for name in ("size", "crc32c"))
        alone = np.where(size == 0, sample_ids, ABSENT)
        words = np.stack([self.places[sample_ids], size << 32 | crc.astype(np.int64), alone])
        numbers: NDArray[np.int64] = np.unique(words, axis=1, return_inverse=True)[1].reshape(-1)
        return numbers

    def shown(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places that samples belong to: first their own, then those of semi-positive tiles.

        Returns:
            int64 [n, S]; -1 is padding. S is 1 if the index of the split has no tiles.
        """
        own = self.places[sample_ids]
        tiles, place_of_tile = self._tiles
        if len(tiles) == 0:
            return own[:, None]
        columns = [own]
        for name in TILES[1:]:
            tile = self.column(name)[sample_ids]
            at = np.searchsorted(tiles, tile).clip(max=len(tiles) - 1)
            columns.append(np.where(tiles[at] == tile, place_of_tile[at], ABSENT))
        return np.stack(columns, axis=1)

    @cached_property
    def _tiles(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tiles that are the positive of a sample, ascending, and the place of each."""
        positive = self.column("positive")
        with_tile = np.flatnonzero(positive != ABSENT)
        tiles, first = np.unique(positive[with_tile], return_index=True)
        return tiles, self.places[with_tile[first]]

    def require_views(self, views: Sequence[str]) -> None:
        """Check that every sample has every view, and each the shape that it has to have.

        Raises:
            DataInputError: says how many lack which; or as `require_shapes`.
        """
        for view in views:
            lacking = int((self.column(f"{view}_offset") == ABSENT).sum())
            if lacking:
                remedy = REMEDIES.get(view, "")
                raise DataInputError(
                    f"{lacking} of the {len(self)} samples of split {self.name!r} ({self.kind}) in "
                    f"{self.root} have no {view} image{remedy}."
                )

        self.require_shapes(views)

    def require_shapes(self, views: Sequence[str]) -> None:
        """Check that tiles are square and class maps as large as their panoramas, by the index.

        Raises:
            DataInputError: names the first that is not.
        """
        if "aerial" in views:
            wrong = self.column("aerial_height") != self.column("aerial_width")
            self._refuse_first(wrong, "aerial", "tiles that are not square", "crop them")
        if "seg" in views and "ground" in views:
            there = (self.column("seg_size") > 0) & (self.column("ground_size") > 0)
            sides = ("height", "width")
            differ = [self.column(f"seg_{s}") != self.column(f"ground_{s}") for s in sides]
            wrong = there & np.any(differ, axis=0)
            what = "class maps of another size than their panorama"
            self._refuse_first(wrong, "seg", what, "make them of one size")

    def _refuse_first(self, wrong: NDArray[np.bool_], view: str, what: str, remedy: str) -> None:
        if not wrong.any():
            return
        first = int(np.flatnonzero(wrong)[0])
        width, height = (self.column(f"{view}_{side}")[first] for side in ("width", "height"))
        raise DataInputError(
            f"Split {self.name!r} in {self.root} has {wrong.sum()} {what}, the first is that of "
            f"{self.source_id(first)} with {width}x{height} pixels: {remedy} and build the shards "
            "again."
        )

    def elevation_warning(self, elevation: tuple[float, float] | None) -> str:
        """As `data_shards.format.aspect.elevation_warning`."""
        return elevation_warning(self._table, elevation)

    def require_tars(self, allowed_missing: int, setting: str) -> None:
        """Check that the tars are there and whole, by a listing of their folder.

        A half-copied folder is thus refused at the start. Up to `allowed_missing` samples may lie
        beyond the end of their tar: those are the reader's affair.

        Args:
            allowed_missing: samples.
            setting: the name of the setting that allows them, for the message.

        Raises:
            DataError: more samples are out of reach; names the first tar.
        """
        there = _sizes(self.root / self.name)
        size_of = {shard: there.get(self.tar_of(shard).name, -1) for shard in self.shards}
        broken = [s for s, entry in self.shards.items() if size_of[s] < entry.bytes]
        if not broken:
            return
        ends = [self.column(f"{part}_offset") + self.column(f"{part}_size") for part in PARTS]
        size_by_shard = np.zeros(max(size_of) + 1, dtype=np.int64)
        size_by_shard[list(size_of)] = list(size_of.values())
        lost = np.maximum.reduce(ends) > size_by_shard[self.column("shard")]
        if lost.sum() > allowed_missing:
            raise DataError(
                f"{len(broken)} of {len(size_of)} tars of split {self.name!r} are missing or "
                f"truncated, the first is {self.tar_of(broken[0])}: {lost.sum()} samples are out "
                f"of reach, more than {setting}={allowed_missing}; copy or build the tars again."
            )

    def require_cache(self, shuffled: bool) -> None:
        """Check that the cache of a split in a store can serve an order.

        Args:
            shuffled: over the whole split, not within windows.

        Raises:
            DataInputError: it would download tars again and again, or can't hold one.
        """
        if self.cache is None:
            return
        sizes_bytes = [shard.bytes for shard in self.shards.values()]
        needed = sum(sizes_bytes) if shuffled else max(sizes_bytes)
        if needed <= self.cache.limit_bytes:
            return
        held = f"data.cache.gigabytes={self.cache.limit_bytes / GIGABYTE:g}"
        if not shuffled:
            raise DataInputError(
                f"A tar of split {self.name!r} has {needed / GIGABYTE:g} GB, more than {held} "
                "holds: raise it."
            )
        samples = max(shard.samples for shard in self.shards.values())
        raise DataInputError(
            f"Split {self.name!r} has {needed / GIGABYTE:g} GB, more than {held} holds, so a "
            "shuffle of the whole epoch would download a tar for nearly every sample: raise it, or "
            f"set data.order.window to a multiple of the {samples} samples of a shard."
        )


def _sizes(folder: Location) -> dict[str, int]:
    """As `sizes`."""
    try:
        return sizes(folder)
    except (ShardError, InputError) as error:
        raise DataError(str(error)) from None

"""A finished split on disk: its index, memory-mapped, and what its files promise to hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards import layout, manifest
from data_shards.errors import ShardError, UserError
from data_shards.index import ABSENT, read_table
from data_shards.sample import PARTS


class DataError(UserError):
    """The data cannot be read as the run needs it; one sentence for the user."""


class DataInputError(DataError):
    """The user named data that is not there, or that does not fit: exit 2."""

    exit_code: ClassVar[int] = 2


class Split:
    """The samples of one split, by sample id: their row in the index, 0..N-1.

    Attributes:
        root: the data set's folder.
        name: of the split.
        kind: "pairs", "aerial" (a gallery) or "ground" (queries).
        manifest_hash: SHA-256 of the manifest, hexadecimal.
    """

    def __init__(
        self, root: Path, name: str, entry: manifest.SplitEntry, manifest_hash: str, table: pa.Table
    ) -> None:
        self.root = root
        self.name = name
        self.kind = entry.kind
        self.manifest_hash = manifest_hash
        self._shards = entry.shards
        self._table = table
        self._columns: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, root: str | Path, name: str) -> "Split":
        """Open a split of a finished data set.

        Raises:
            DataInputError: no such folder, manifest or split, or they cannot be read.
            DataError: the manifest or the index is damaged.
        """
        root = Path(root)
        try:
            described = manifest.load(root)
            if name not in described.splits:
                there = ", ".join(sorted(described.splits))
                raise DataInputError(f"{root} has no split {name!r}, it has {there}.")
            table = read_table(layout.table_path(root, name))
            manifest_hash = manifest.manifest_hash(root)
        except ShardError as error:
            kind = DataInputError if error.exit_code == DataInputError.exit_code else DataError
            raise kind(str(error)) from None
        except OSError as error:
            raise DataInputError(f"{root} can't be read: {error.strerror}.") from None
        entry = described.splits[name]
        if len(table) != entry.samples:
            raise DataError(
                f"The index of split {name!r} in {root} has {len(table)} samples, its manifest "
                f"says {entry.samples}: run `smdt shards finalize {root}`."
            )
        return cls(root, name, entry, manifest_hash, table)

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

    def tar(self, sample_id: int) -> Path:
        """The tar that holds the sample."""
        return self._tar(int(self.column("shard")[sample_id]))

    @property
    def places(self) -> NDArray[np.int64]:
        """Numbers that samples of one place share (`data_shards.places`), int64 [N], from 0."""
        return self.column("place")

    def require_views(self, views: Sequence[str]) -> None:
        """Check that every sample has every view.

        Raises:
            DataInputError: says how many lack which.
        """
        for view in views:
            lacking = int((self.column(f"{view}_offset") == ABSENT).sum())
            if lacking:
                remedy = ": make class maps with `smdt segment`" if view == "seg" else ""
                raise DataInputError(
                    f"{lacking} of the {len(self)} samples of split {self.name!r} ({self.kind}) in "
                    f"{self.root} have no {view} image{remedy}."
                )

    def require_tars(self, allowed_missing: int, setting: str) -> None:
        """Check that the tars are there and whole, by one stat each.

        A half-copied folder is thus refused at the start. Up to `allowed_missing` samples may lie
        beyond the end of their tar: those are the reader's affair.

        Args:
            allowed_missing: samples.
            setting: the name of the setting that allows them, for the message.

        Raises:
            DataError: more samples are out of reach; names the first tar.
        """
        sizes = {shard.shard: _size(self._tar(shard.shard)) for shard in self._shards}
        broken = [s.shard for s in self._shards if s.samples and sizes[s.shard] < s.bytes]
        if not broken:
            return
        ends = [self.column(f"{part}_offset") + self.column(f"{part}_size") for part in PARTS]
        size_by_shard = np.zeros(max(sizes) + 1, dtype=np.int64)
        size_by_shard[list(sizes)] = list(sizes.values())
        lost = np.maximum.reduce(ends) > size_by_shard[self.column("shard")]
        if lost.sum() > allowed_missing:
            raise DataError(
                f"{len(broken)} of {len(sizes)} tars of split {self.name!r} are missing or "
                f"truncated, the first is {self._tar(broken[0])}: {lost.sum()} samples are out of "
                f"reach, more than {setting}={allowed_missing}; copy or build the tars again."
            )

    def _tar(self, shard: int) -> Path:
        return layout.tar_path(self.root, self.name, shard)


def _size(path: Path) -> int:
    """Bytes of a file, -1 where there is none to be read."""
    try:
        return path.stat().st_size
    except OSError:
        return -1

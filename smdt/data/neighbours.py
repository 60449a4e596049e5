"""Neighbour tables: which samples of other places are near each sample, and where they are kept.

Shapes: N samples of a split, P places, K neighbours of a sample.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.base.atomic import atomic_file
from data_shards.base.errors import DataError
from data_shards.format.geodesy import directions
from smdt.data.order import Neighbours
from smdt.data.split import Split

NO_NEIGHBOUR = -1

QUERIES_AT_ONCE = 1 << 18
"""Samples whose neighbours are looked up together: half a GiB at 64 neighbours."""


@dataclass(frozen=True)
class NeighbourTable:
    """A table on disk, memory-mapped: one copy for all ranks of a node.

    Attributes:
        samples: int32 [N, K] sample ids, nearest first, -1 where there are fewer.
        sha256: of the file, hexadecimal: what a data state names it by.
    """

    samples: Neighbours
    sha256: str

    @classmethod
    def load(cls, folder: Path, sha256: str) -> "NeighbourTable":
        """Map the table that a data state names.

        Raises:
            DataError: it is missing or damaged.
        """
        path = _path(folder, sha256)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"The neighbour table {path} can't be read ({error.strerror}): the run cannot "
                "resume in the same order; restore it, or start a new run."
            ) from None
        if found != sha256:
            raise DataError(f"The neighbour table {path} is damaged: bring back a whole copy.")
        return cls(np.load(path, mmap_mode="r", allow_pickle=False), sha256)


def save(folder: Path, parts: Iterable[Neighbours], shape: tuple[int, int]) -> str:
    """Write a table; return the SHA-256 that names it.

    Args:
        folder: where tables are kept.
        parts: its rows in order, int32 [n, K] each; held one after the other.
        shape: N, K.
    """
    unnamed = folder / "unnamed.npy"
    header = {"descr": np.dtype("<i4").str, "fortran_order": False, "shape": shape}
    with atomic_file(unnamed) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in parts:
            file.write(np.ascontiguousarray(rows, dtype="<i4").data)
    with unnamed.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    unnamed.replace(_path(folder, sha256))
    return sha256


def prune(folder: Path, needed: Iterable[str]) -> None:
    """Delete the tables that no data state names any more."""
    kept = {_path(folder, sha256) for sha256 in needed if sha256}
    for path in folder.glob("*.npy"):
        if path not in kept:
            path.unlink()


def nearest_by_position(split: Split, count: int, rows: range) -> Neighbours:
    """The nearest samples of other places by position, int32 [len(rows), K].

    By great-circle distance where the split has latitudes, else by UTM position (of one zone).
    A near place is represented by one of its samples, another one for each sample that asks. A
    place that the asking sample belongs to as well (VIGOR's semi-positives) is not a neighbour.

    Args:
        split: its index has the positions.
        count: K.
        rows: sample ids to find the neighbours of; one without a position has none.

    Raises:
        DataError: no sample has a position.
    """
    from scipy.spatial import KDTree  # takes half a second

    positions = _positions(split)  # [N, 2 or 3]
    known = np.flatnonzero(~np.isnan(positions).any(axis=1))
    if len(known) == 0:
        raise DataError(
            f"No sample of split {split.name!r} in {split.root} has a position, which "
            "neighbours on the map need: set data.order.hard.refresh to take neighbours from "
            "embeddings."
        )
    by_place = known[np.argsort(split.places[known], kind="stable")]
    _, first, size = np.unique(split.places[by_place], return_index=True, return_counts=True)  # [P]
    tree = KDTree(positions[by_place[first]])
    number_of_place = np.full(int(split.places.max()) + 1, NO_NEIGHBOUR)
    number_of_place[split.places[by_place[first]]] = np.arange(len(first))

    table = np.full((len(rows), count), NO_NEIGHBOUR, dtype=np.int32)
    own_places = split.shown(np.asarray(rows[:1], dtype=np.int64)).shape[1]
    found = min(count + own_places, len(first))  # the nearest ones are its own
    kept = min(count, len(first) - 1)
    for start in range(0, len(rows), QUERIES_AT_ONCE):
        asking = np.asarray(rows[start : start + QUERIES_AT_ONCE])
        asking = asking[~np.isnan(positions[asking]).any(axis=1)]
        near = tree.query(positions[asking], found, workers=-1)[1].reshape(len(asking), found)
        own = np.zeros(near.shape, dtype=bool)
        for place in split.shown(asking).T:
            known = np.where(place < 0, NO_NEIGHBOUR, number_of_place[place])
            own |= near == known[:, None]
        others_first = np.argsort(own, axis=1, kind="stable")[:, :kept]
        others = np.take_along_axis(near, others_first, axis=1)
        member = asking[:, None] % size[others]
        samples = by_place[first[others] + member]
        samples[np.take_along_axis(own, others_first, axis=1)] = NO_NEIGHBOUR
        table[asking - rows.start, :kept] = samples
    return table


def _positions(split: Split) -> NDArray[np.float64]:
    """Points whose straight distances order as the true ones, NaN where unknown: [N, 2 or 3]."""
    lat, lon = split.column("lat"), split.column("lon")
    if np.isnan(lat).all():
        return split.utm
    return directions(np.stack([lat, lon], axis=1))


def _path(folder: Path, sha256: str) -> Path:
    return folder / f"{sha256}.npy"

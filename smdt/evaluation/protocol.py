"""Evaluation protocols of the benchmarks: galleries, and the relevant items of each query.

Q queries, G gallery items, R right items of a query, M items that do not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data_shards.base.errors import InputError
from data_shards.format.index import ABSENT
from smdt.evaluation.recall import EvaluationError
from smdt.geometry.field_of_view import FieldOfView

ProtocolName = Literal["pairs", "cvusa", "cvact_val", "cvact_test", "vigor_same", "vigor_cross"]

HIT_RATE = "hit rate"
"""Share of the queries whose tile is nearest, those left out that show its place too (VIGOR)."""

Ids = NDArray[np.int64]


class ProtocolConfig(BaseModel):
    """Rules of an evaluation: how queries are shown, and which items are relevant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: ProtocolName | None = None
    """The benchmark's rules; None: those of the data set, by the name in its manifest."""
    fov_deg: FieldOfView = 360.0
    """Field of view that is left of the ground images."""
    unknown_heading: bool = False
    """Turn each ground image by a random heading that the towers do not get."""

    def label(self, protocol: str) -> str:
        """Return a protocol's label with suffixes for the queries' field of view and heading."""
        fov = [] if self.fov_deg == 360 else [f"fov{self.fov_deg:g}"]
        return "-".join([protocol, *fov, *(["unknown-heading"] if self.unknown_heading else [])])


@dataclass(frozen=True)
class EvaluationProtocol:
    """A way to evaluate retrieval.

    Attributes:
        name: label of the metrics.
        split: of the queries, unless another one is named.
        gallery: split of the gallery; None: the aerial images of the queries' own split.
        within_m: an entry whose tile is at most this far away is right too; 0: only the own one.
        one_entry: an aerial image is one entry of the gallery however many samples have it, and
            every entry of a query's place is right. Else every sample is an entry, as benchmarks
            are published, and an entry with the same image as a right one is right.
    """

    name: ProtocolName
    split: str
    gallery: str | None = None
    within_m: float = 0.0
    one_entry: bool = False


PROTOCOLS: Mapping[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        EvaluationProtocol("pairs", "val", one_entry=True),
        EvaluationProtocol("cvusa", "val"),
        EvaluationProtocol("cvact_val", "val"),
        EvaluationProtocol("cvact_test", "test", within_m=5.0),
        EvaluationProtocol("vigor_same", "test", gallery="aerial"),
        EvaluationProtocol("vigor_cross", "test", gallery="aerial"),
    )
}


def protocol_of(data_set: str, area: object, split: str | None) -> EvaluationProtocol:
    """Return the default protocol of a data set's split (pure).

    Args:
        data_set: name in the manifest.
        area: `same` or `cross`, of VIGOR.
        split: of the queries; None is the data set's own choice.
    """
    names: dict[str, ProtocolName]
    match data_set:
        case "cvusa":
            names = {"val": "cvusa"}
        case "cvact":
            names = {"val": "cvact_val", "test": "cvact_test"}
        case "vigor":
            names = {"test": "vigor_cross" if area == "cross" else "vigor_same"}
        case _:
            names = {}
    chosen = next(iter(names.values()), "pairs") if split is None else names.get(split, "pairs")
    return PROTOCOLS[chosen]


def check_area(protocol: EvaluationProtocol, area: object) -> None:
    """Check that VIGOR's shards are of the area that a protocol is about.

    Raises:
        InputError: they are of the other one.
    """
    asked = protocol.name.removeprefix("vigor_")
    if protocol.gallery is not None and area is not None and area != asked:
        raise InputError(
            f"protocol {protocol.name} is about another division of the cities than these shards, "
            f"which were built with --area {area}: use vigor_{area}"
        )


@dataclass(frozen=True)
class Relevance:
    """Relevant gallery positions of some queries.

    Attributes:
        right: int64 [Q, R]; a query with fewer repeats one.
        ignored: int64 [Q, M], what counts neither as right nor as wrong if the protocol says so;
            padded in the same way, or with a right one.
    """

    right: Ids
    ignored: Ids

    def with_copies(self, images: Ids) -> "Relevance":
        """Return the same with all items that have the same image as one of them.

        Args:
            images: [G], numbers that items share which have the same image.
        """
        return Relevance(_with_copies(self.right, images), _with_copies(self.ignored, images))


def match_by_id(queries: Ids, gallery: Ids) -> Relevance:
    """Every item with a query's number is right.

    Args:
        queries: [Q] numbers, as of samples or places; each is in the gallery.
        gallery: [G] numbers of the same kind.
    """
    right = _positions(queries, gallery)
    assert np.array_equal(gallery[right[:, 0]], queries), "a pair is read as a whole"
    return Relevance(right, right[:, :0])


def tiles_within(
    queries: NDArray[np.float64], gallery: NDArray[np.float64], metres: float
) -> Relevance:
    """Every tile within a distance in metres is relevant.

    Args:
        queries: [Q, 2] easting and northing, metres.
        gallery: [G, 2]; each query's own tile is in it.
        metres: at most.

    Raises:
        EvaluationError: a position is unknown.
    """
    from scipy.spatial import KDTree  # takes half a second

    for positions in (queries, gallery):
        require_positions(positions, metres)
    near = KDTree(gallery).query_ball_point(queries, metres, return_sorted=True)
    right = _padded([[*tiles] for tiles in near])
    return Relevance(right, right[:, :0])


def require_positions(positions: NDArray[np.float64], metres: float) -> None:
    """Check that all positions [N, 2] are known, as `tiles_within` needs.

    Raises:
        EvaluationError: one is NaN.
    """
    unknown = int(np.isnan(positions).any(axis=1).sum())
    if unknown:
        raise EvaluationError(
            f"{unknown} of {len(positions)} samples have no UTM position, which the rule of "
            f"{metres:g} m needs: evaluate with --protocol pairs"
        )


def named_tiles(positive: Ids, semi_positives: Ids, tiles: Ids) -> Relevance:
    """Each query names the tile that is right, and others that show its place too.

    Args:
        positive: [Q] numbers of tiles, all in the gallery.
        semi_positives: [Q, M] numbers of tiles; absent ones and those outside the gallery have no
            effect.
        tiles: [G] number of each gallery item.
    """
    order = np.argsort(tiles, kind="stable")
    ascending = tiles[order]

    def position(numbers: Ids) -> Ids:
        at = np.searchsorted(ascending, numbers).clip(max=len(tiles) - 1)
        found: Ids = np.where(ascending[at] == numbers, order[at], ABSENT)
        return found

    right = position(positive)[:, None]
    assert (right != ABSENT).all(), "queries without their tile are left out before"
    ignored = position(semi_positives)
    return Relevance(right, np.where(ignored == ABSENT, right, ignored))


def same_cities(queries: Sequence[str], gallery: Sequence[str]) -> NDArray[np.bool_]:
    """Say which gallery items are of cities that queries are from.

    Args:
        queries: source ids, `<city>/<file>`.
        gallery: source ids in the same form.

    Returns:
        bool [G].
    """
    cities = {name.partition("/")[0] for name in queries}
    return np.array([name.partition("/")[0] in cities for name in gallery], dtype=bool)


def _positions(numbers: Ids, gallery: Ids) -> Ids:
    """Positions in a gallery of all items with each number, [n, R]; fewer repeat the last one."""
    order = np.argsort(gallery, kind="stable")
    first, end = (np.searchsorted(gallery[order], numbers, side) for side in ("left", "right"))
    longest = int((end - first).max(initial=1))
    at = np.minimum(first[:, None] + np.arange(longest), end[:, None] - 1)
    positions: Ids = order[at.clip(min=0)]
    return positions


def _with_copies(items: Ids, images: Ids) -> Ids:
    """Positions [Q, R] and those of all items with the same image, [Q, R * copies]."""
    copies = _positions(images[items].ravel(), images)
    return copies.reshape(len(items), items.shape[1] * copies.shape[1])


def _padded(items: Sequence[Sequence[int]]) -> Ids:
    """Rows of equal length, in which short ones repeat their first item; no row is empty."""
    longest = max(map(len, items), default=1)
    rows = (chain(row, repeat(row[0], longest - len(row))) for row in items)
    return np.array([[*row] for row in rows], dtype=np.int64).reshape(-1, longest)

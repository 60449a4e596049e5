"""Localization of a photo: nearest places in a gallery, and its heading.

A photo of unknown heading is laid into the panorama at many headings, each of which is a query. The
best k places over all headings are among the best k of each, so the search is exact.

Where the gallery has its places at several turns, photo and place are compared at each of them,
turned alike, and a score is the mean: what a pair has in common stays as both turn, what only looks
alike from one side does not.

N headings, T turns, G gallery items, D descriptor, k places.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from data_shards.base.errors import InputError
from data_shards.base.text import read_bytes
from data_shards.build.finalize import sha256
from data_shards.format.images import decode_upright
from data_shards.format.sample import RejectedSample
from smdt.evaluation.recall import nearest
from smdt.geometry.augment import even_turns
from smdt.geometry.photo import Elevation, Lens, paste_into_panorama
from smdt.geometry.view import roll_to_north, turn
from smdt.inference.embed import open_retrieval
from smdt.inference.gallery import Gallery
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.weights import resolve_checkpoint
from smdt.training.checkpoints import checkpoint

BATCH = 16
"""Headings that are embedded at once."""
WHOLE_DEG = 360.0
WIDEST_DEG: Mapping[Lens, float] = {"panorama": WHOLE_DEG, "rectilinear": 170.0}


@dataclass(frozen=True)
class PhotoQuery:
    """Field of view and heading of a photo, as far as known.

    Attributes:
        fov_deg: horizontal field of view.
        heading_deg: of its middle column, clockwise from north; None: unknown.
        lens: how it was taken.
        headings: how many are tried if it is unknown.
    """

    fov_deg: float
    heading_deg: float | None
    lens: Lens
    headings: int

    @classmethod
    def of(cls, fov_deg: float, heading_deg: float | None, lens: str, headings: int) -> Self:
        """Check what a user says.

        Raises:
            InputError: no photo is so.
        """
        if lens not in get_args(Lens):
            raise InputError(f"--lens: '{lens}' is not one of {', '.join(get_args(Lens))}")
        known: Lens = "rectilinear" if lens == "rectilinear" else "panorama"
        widest = WIDEST_DEG[known]
        if not 0 < fov_deg <= widest:
            raise InputError(
                f"--fov: a photo of --lens {lens} shows more than 0 and at most {widest:g} "
                f"degrees, not {fov_deg:g}"
            )
        if heading_deg is not None and not math.isfinite(heading_deg):
            raise InputError(f"--heading: {heading_deg} is not a direction")
        return cls(fov_deg, heading_deg, known, headings)


@dataclass(frozen=True)
class PlaceMatch:
    """A place that a photo may be of.

    Attributes:
        item: of the gallery.
        score: cosine of the descriptors, 1 is the same.
        heading_deg: of the photo's middle column if this is the place; None: the towers can't tell.
    """

    item: int
    score: float
    heading_deg: float | None


class Locator:
    """Finds photos in a gallery.

    Args:
        gallery: where to look.
        trained: run or checkpoint whose towers made it; None: where the gallery says that it is.

    Raises:
        InputError: the weights are not those of the gallery.
    """

    def __init__(self, gallery: Gallery, trained: Path | None = None) -> None:
        folder = resolve_checkpoint(trained or Path(gallery.described.checkpoint))
        if sha256(folder / checkpoint.WEIGHTS) != gallery.described.weights_sha256:
            raise InputError(
                f"the gallery was made by other weights than {folder}: name the run or checkpoint "
                "that made it with --checkpoint, or run `smdt embed` again"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._config, self._stage = open_retrieval(folder, self._device)
        self._items = gallery.descriptors.to(self._device)
        self._turns = gallery.described.turns
        self._elevation_deg = elevation_of(self._config, gallery)

    @property
    def narrowest_deg(self) -> float:
        """The narrowest field of view that the towers were trained on."""
        return self._config.augment.fov_deg[0]

    def __call__(self, photo: Tensor, look: PhotoQuery, k: int) -> list[PlaceMatch]:
        """Return the k nearest places, best first.

        Args:
            photo: uint8 [h, w, 3].
            look: what is known of it.
            k: at least 1; fewer are returned where the gallery has fewer.

        Raises:
            InputError: the panoramas' elevations are unknown, which a rectilinear photo needs.
        """
        if look.lens == "rectilinear" and self._elevation_deg is None:
            raise InputError(
                "--lens rectilinear needs the elevations of the panoramas that the towers were "
                "trained on, and neither geometry.elevation_deg nor the gallery has them"
            )
        headings = placed = self._headings(look)
        if look.fov_deg == WHOLE_DEG and look.heading_deg is not None:
            # At its own size, as a data set's panorama: the same pixels as in an evaluation.
            (photo,) = roll_to_north([photo], np.array([look.heading_deg]))
            placed = np.zeros(1)
        panorama = paste_into_panorama(
            photo,
            look.fov_deg,
            look.lens,
            self._config.geometry.panorama_size,
            self._elevation_deg or (-45.0, 45.0),
        )
        descriptors = embed_at(self._stage, panorama.to(self._device), placed, self._turns)
        found = best_places(descriptors, self._items, k)
        told = not self._config.augment.unknown_heading
        return [
            PlaceMatch(item, score, float(headings[at]) if told else None)
            for item, score, at in found
        ]

    def _headings(self, look: PhotoQuery) -> np.ndarray:
        """Headings of the photo's middle that are tried, degrees [N]."""
        if self._config.augment.unknown_heading:
            return np.zeros(1)  # such towers expect every photo in the middle
        if look.heading_deg is not None:
            return np.array([look.heading_deg % WHOLE_DEG])
        return np.arange(look.headings) * (WHOLE_DEG / look.headings)


@torch.no_grad()
def embed_at(
    stage: RetrievalStage, panorama: Tensor, headings_deg: np.ndarray, turns: int = 1
) -> Tensor:
    """Embed a photo as if it looked to each of some headings, at each turn: [N, T * D].

    Args:
        stage: in evaluation mode.
        panorama: [1, 3, H, W], the photo in its middle.
        headings_deg: [N].
        turns: T, as in the gallery.
    """
    # Turned clockwise, a pair has the photo that much less clockwise of its middle.
    placed_NT = (headings_deg[:, None] - even_turns(turns)) % WHOLE_DEG
    placed, at = np.unique(placed_NT, return_inverse=True)  # turns fall on other headings
    parts = np.split(placed, range(BATCH, len(placed), BATCH))
    turned = (turn(panorama.expand(len(part), -1, -1, -1), -part) for part in parts)
    descriptors = torch.cat([stage.towers.embed_ground(images) for images in turned])
    return descriptors[torch.from_numpy(at.reshape(placed_NT.shape))].flatten(1) / math.sqrt(turns)


def best_places(queries: Tensor, items: Tensor, k: int) -> list[tuple[int, float, int]]:
    """Return the k items that are nearest to any of some queries, best first.

    Args:
        queries: [N, D].
        items: [G, D].
        k: at least 1.

    Returns:
        The item, its score, and the query that is nearest to it.

    Raises:
        EvaluationError: a descriptor is zero or not finite.
    """
    scores, indices = nearest(queries, items, min(k, len(items)))
    best: dict[int, tuple[float, int]] = {}
    for query, (row, at) in enumerate(zip(scores.tolist(), indices.tolist(), strict=True)):
        for score, item in zip(row, at, strict=True):
            if item not in best or score > best[item][0]:
                best[item] = (score, query)
    ordered = sorted(best.items(), key=lambda entry: (-entry[1][0], entry[0]))
    return [(item, score, query) for item, (score, query) in ordered[:k]]


def elevation_of(config: RetrievalConfig, gallery: Gallery) -> Elevation | None:
    """Return the elevations of a run's panoramas, from its configuration or the gallery's split."""
    return config.geometry.elevation_deg or gallery.described.elevation_deg


def read_photo(path: Path) -> Tensor:
    """Decode a photo, upright: uint8 [h, w, 3].

    Raises:
        InputError: it can't be read, or a build would reject it for more than its orientation.
    """
    try:
        pixels = decode_upright(str(path), read_bytes(path))
    except RejectedSample as rejection:
        raise InputError(rejection.detail) from None
    return torch.from_numpy(np.array(pixels))


def geojson(found: list[PlaceMatch], gallery: Gallery) -> dict[str, Any]:
    """Return places as a GeoJSON collection of points; those without coordinates have no point."""
    features = []
    for rank, each in enumerate(found, start=1):
        place = gallery.place(each.item)
        lat, lon = place["lat"], place["lon"]
        features.append(
            {
                "type": "Feature",
                "geometry": None
                if lat is None or lon is None
                else {"type": "Point", "coordinates": [lon, lat]},
                "properties": {
                    "rank": rank,
                    "score": each.score,
                    "source_id": place["source_id"],
                    "heading_deg": each.heading_deg,
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}

"""Rewriting a data set: the same samples, with one part of each replaced."""

from collections.abc import Iterable, Mapping

import numpy as np

from data_shards.build.writer import PreparedSample
from data_shards.format.image_header import JPEG_SIGNATURE, FileType
from data_shards.format.images import PreparedImage, decode_photo
from data_shards.format.index import VIEWS
from data_shards.format.manifest import Manifest
from data_shards.format.pixels import PixelSums, grid_histogram, pixel_digest
from data_shards.format.plan import BuildPlan, PlannedSplit
from data_shards.format.sample import IMAGES, JSON, Meta


def rewriting_plan(
    manifest: Manifest, manifest_hash: str, part: str, model: dict[str, JSON]
) -> BuildPlan:
    """The plan of the data set that has `part` from a model and all else from another one (pure).

    Args:
        manifest: of the other one.
        manifest_hash: SHA-256 of its bytes.
        part: of `PARTS`.
        model: what makes it.
    """
    return BuildPlan(
        name=manifest.name,
        source=manifest.source,
        options=manifest.options,
        encoder=manifest.encoder,
        splits={
            name: PlannedSplit(kind=split.kind, rows=split.rows)
            for name, split in manifest.splits.items()
        },
        made={**manifest.made, part: model},
        made_from=manifest_hash,
    )


def restored(
    key: str,
    parts: Mapping[str, bytes],
    sizes: Mapping[str, tuple[int, int]],
    digests: Mapping[str, bytes] | None,
) -> PreparedSample:
    """Return a sample as its shard holds it, without histograms.

    Args:
        key: the sample's.
        parts: bytes by the names of `PARTS`.
        sizes: height and width of the images among them.
        digests: of the photographs in `VIEWS`; None: its shard is older than they are.
    """
    images = {}
    for name in IMAGES:
        if name not in parts:
            continue
        data, digest = parts[name], None
        if name in VIEWS:
            photo = f"{name} of {key}"
            digest = digests[name] if digests else pixel_digest(decode_photo(photo, data))
        file_type: FileType = "jpg" if data.startswith(JPEG_SIGNATURE) else "png"
        images[name] = PreparedImage(data, file_type, *sizes[name], None, digest)
    return PreparedSample(key, Meta.from_json(parts["meta"]), parts["meta"], images)


def row_of(key: str) -> int:
    """The source row of a sample, as its key says."""
    return int(key.rpartition("-")[2])


def count_pixels(photographs: Iterable[tuple[str, bytes]]) -> dict[str, PixelSums]:
    """Sum the pixels of photographs by view, from (view, bytes) each."""
    histograms: dict[str, np.ndarray] = {}
    for view, data in photographs:
        histograms[view] = histograms.get(view, 0) + grid_histogram(decode_photo(view, data))
    return {view: PixelSums.from_histogram(histogram) for view, histogram in histograms.items()}

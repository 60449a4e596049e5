"""Deterministic, atomic shards: rows of a source become a tar, its index part and its `.idx`."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import BinaryIO

import google_crc32c
import numpy as np

from data_shards.base.atomic import atomic_file, write_atomic
from data_shards.base.errors import ShardError
from data_shards.base.store import Location
from data_shards.format import layout
from data_shards.format.idx import Member, idx_text, place_members
from data_shards.format.images import PreparedImage, prepare_class_map, prepare_photo
from data_shards.format.index import (
    NO_DIGEST,
    PartEntry,
    Rejection,
    ShardSummary,
    index_row,
    write_part,
)
from data_shards.format.pixels import PixelSums
from data_shards.format.plan import BuildOptions, ShardTask
from data_shards.format.sample import PART_FILES, Meta, RejectedSample, Sample
from data_shards.sources.source import Source

SLOW_IMPORTS = ("webdataset",)
"""It brings torch: seconds that only a process which writes has to spend."""

OWNER = "smdt"
MODE = 0o444
MODIFIED_SECONDS = 0
AHEAD = 16


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample whose every image has been decoded: images by their name, without the file type.

    `meta_json` is what its `meta.json` holds, byte for byte.
    """

    key: str
    meta: Meta
    meta_json: bytes
    images: dict[str, PreparedImage]


def write_shard(
    source: Source,
    options: BuildOptions,
    root: Location,
    task: ShardTask,
    advance: Callable[[int], None],
) -> ShardSummary:
    """Write one shard: the same bytes for the same arguments, and all of it or nothing.

    Args:
        source: where the samples come from.
        options: of the build.
        root: of the data set; the split's folder exists.
        task: which shard.
        advance: called with 1 after each row.

    Raises:
        ShardError: the disk does not take it.
    """
    rejected: list[Rejection] = []
    samples = _ahead(_accepted(source, options, task, rejected, advance))
    return write_samples(samples, root, task.split, task.shard, rejected)


def write_samples(
    samples: Iterator[PreparedSample],
    root: Location,
    split: str,
    shard: int,
    rejected: list[Rejection],
    pixels: Callable[[], Mapping[str, PixelSums]] = dict,
) -> ShardSummary:
    """Write prepared samples as one shard: the same bytes for the same samples, all or nothing.

    Args:
        samples: in their order.
        root: of the data set; the split's folder exists.
        split: of the shard.
        shard: its number.
        rejected: rows that are not in the shard; read when `samples` is at its end.
        pixels: sums of the photographs without a histogram, by view; read at the end too.

    Raises:
        ShardError: the disk does not take it.
    """
    first = next(samples, None)
    try:
        if first is None:
            summary = ShardSummary(
                samples=0, tar_bytes=0, tar_sha256="", pixels={}, rejected=rejected
            )
            write_part(layout.part_path(root, split, shard), [], summary)
            return summary
        return _write(chain([first], samples), root, split, shard, rejected, pixels)
    except OSError as error:
        path = layout.tar_path(root, split, shard)
        raise ShardError(f"{path} can't be written: {error.strerror}.") from error


def prepare(key: str, sample: Sample, options: BuildOptions) -> PreparedSample:
    """Decode a sample's images, and crop and resize them if configured.

    Raises:
        RejectedSample: one of them can't be used.
    """
    images = {}
    assert "seg" not in sample.crops, "class maps come as large as the panorama's kept rows"
    for part, data in sample.parts.items():
        assert part in PART_FILES, part
        image = part.split(".")[0]
        name = f"{part} of {sample.meta.source_id}"
        size = _target_size(image, options)
        if image == "seg":
            images[image] = prepare_class_map(name, data, size)
        else:
            crop = sample.crops.get(image)
            square = image == "aerial"
            images[image] = prepare_photo(name, data, size, options.encoding, crop, square)
    if "seg" in images and "ground" in images:
        seg, ground = images["seg"], images["ground"]
        if (seg.height, seg.width) != (ground.height, ground.width):
            raise RejectedSample(
                "bad_class_map",
                f"The class map of {sample.meta.source_id} is {seg.height} x {seg.width}, "
                f"its panorama {ground.height} x {ground.width}.",
            )
    return PreparedSample(key, sample.meta, sample.meta.to_json(), images)


def _target_size(image: str, options: BuildOptions) -> tuple[int, int] | None:
    if image == "aerial":
        return None if options.aerial_size is None else (options.aerial_size, options.aerial_size)
    return options.ground_size


def _accepted(
    source: Source,
    options: BuildOptions,
    task: ShardTask,
    rejected: list[Rejection],
    advance: Callable[[int], None],
) -> Iterator[PreparedSample]:
    """The samples of a task; the others are appended to `rejected`."""
    for row in task.rows:
        try:
            sample = source.sample(task.split, row)
            yield prepare(layout.sample_key(task.split, row), sample, options)
        except RejectedSample as rejection:
            rejected.append(
                Rejection(
                    split=task.split, row=row, reason=rejection.reason, detail=rejection.detail
                )
            )
        advance(1)


def _write(
    samples: Iterator[PreparedSample],
    root: Location,
    split: str,
    shard: int,
    rejected: list[Rejection],
    pixels: Callable[[], Mapping[str, PixelSums]],
) -> ShardSummary:
    from webdataset import TarWriter

    rows, members = [], []
    histograms: dict[str, np.ndarray] = {}
    offset = 0
    with atomic_file(layout.tar_path(root, split, shard)) as file:
        hashing = _HashingFile(file)
        with TarWriter(
            hashing, encoder=False, user=OWNER, group=OWNER, mode=MODE, mtime=MODIFIED_SECONDS
        ) as tar:
            for sample in samples:
                parts = _part_files(sample)
                tar.write({"__key__": sample.key, **parts})
                placed, offset = place_members(
                    offset, sample.key, {part: len(data) for part, data in parts.items()}
                )
                members += placed
                rows.append(
                    index_row(sample.key, shard, sample.meta, _entries(placed, sample, parts))
                )
                _count(histograms, sample)
    counted = {view: PixelSums.from_histogram(h) for view, h in histograms.items()}
    summary = ShardSummary(
        samples=len(rows),
        tar_bytes=hashing.size,
        tar_sha256=hashing.sha256.hexdigest(),
        pixels=dict(sorted((dict(pixels()) | counted).items())),
        rejected=rejected,
    )
    write_atomic(layout.idx_path(root, split, shard), idx_text(members).encode())
    write_part(layout.part_path(root, split, shard), rows, summary)
    return summary


def _ahead(samples: Iterator[PreparedSample]) -> Iterator[PreparedSample]:
    """The same samples, prepared some at a time: decoding and writing push each other's data out
    of the processor's caches."""
    while batch := list(islice(samples, AHEAD)):
        yield from batch


def _part_files(sample: PreparedSample) -> dict[str, bytes]:
    """Bytes by file name, in the order in which `TarWriter` writes them: sorted."""
    files = {f"{name}.{image.file_type}": image.data for name, image in sample.images.items()}
    files["meta.json"] = sample.meta_json
    return dict(sorted(files.items()))


def _entries(
    members: list[Member], sample: PreparedSample, parts: dict[str, bytes]
) -> dict[str, PartEntry]:
    entries = {}
    for member in members:
        name = member.part.split(".")[0]
        image = sample.images.get(name)
        entries[name] = PartEntry(
            offset=member.offset,
            size=member.size,
            crc32c=google_crc32c.value(parts[member.part]),
            height=image.height if image else 0,
            width=image.width if image else 0,
            digest=(image.digest if image else None) or NO_DIGEST,
        )
    return entries


def _count(histograms: dict[str, np.ndarray], sample: PreparedSample) -> None:
    for view, image in sample.images.items():
        if image.histogram is not None:
            histograms[view] = histograms.get(view, 0) + image.histogram


class _HashingFile:
    """Passes bytes on to a file and hashes them, so that a tar is never read back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

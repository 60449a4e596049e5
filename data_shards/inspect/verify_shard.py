"""Check one shard: bytes, pixels, index and tar against each other."""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa

from data_shards.base.errors import InputError, ShardError
from data_shards.base.store import Location, local_copy, read_bytes
from data_shards.build.executor import AdvanceCallback
from data_shards.build.finalize import sha256
from data_shards.format import layout
from data_shards.format.idx import Member, idx_text
from data_shards.format.images import decode, decode_photo
from data_shards.format.index import (
    NO_DIGEST,
    VIEWS,
    digest_words,
    read_digests,
    read_part,
    read_table,
)
from data_shards.format.manifest import ShardEntry
from data_shards.format.pixels import PixelSums, grid_histogram, pixel_digest
from data_shards.format.sample import IMAGES, PARTS, RejectedSample


class Damage(NamedTuple):
    """One thing that is wrong.

    Args:
        file: relative to the data set's root.
        key: of the sample, empty if the damage is not in one sample.
        part: of the sample, as `ground`; empty if the damage is not in one part.
        reason: a short token: `missing`, `truncated`, `checksum`, `undecodable`, `index`, `count`.
        detail: one sentence.
    """

    file: str
    key: str
    part: str
    reason: str
    detail: str


class ShardCheck(NamedTuple):
    """Damage of a shard, and the pixel sums of each view."""

    damages: list[Damage]
    pixels: dict[str, PixelSums]
    digests: dict[str, np.ndarray]


class _PixelTotals(NamedTuple):
    """Pixel sums of the decoded photographs of a shard, by view."""

    histograms: dict[str, np.ndarray]
    digests: dict[str, list[bytes]]


class ShardToCheck(NamedTuple):
    """A shard to check.

    Args:
        split: of the shard.
        entry: of it in the manifest.
        first_row: its first in `table`.
        table: the split's merged index; None if it is damaged, so that it is not read.
    """

    split: str
    entry: ShardEntry
    first_row: int
    table: Path | None


def check_shard(
    root: Location, task: ShardToCheck, advance: AdvanceCallback
) -> tuple[ShardToCheck, ShardCheck]:
    """Check a shard against its indexes and the manifest; `advance` is called for each sample."""
    looked = _PixelTotals({}, {view: [] for view in VIEWS})
    rows, damages = _read_rows(root, task)
    stored = layout.tar_path(root, task.split, task.entry.shard)
    name = f"{task.split}/{stored.name}"
    try:
        with local_copy(stored) as tar:
            found = [] if rows is None else [*_check_samples(tar, name, rows, looked, advance)]
            if rows is not None:
                found += _check_members(root, tar, task, rows)
            damage = check_sha256(name, tar, task.entry.sha256, "The tar", "")
            if damage is not None and not found:
                found = [damage]
            damages += found
    except OSError as error:
        damages.append(unreadable(name, "The tar", error))
    digests = {view: digest_words(each) for view, each in looked.digests.items()}
    if not damages:
        damages += _check_digests(root, task, rows or [], digests)
    pixels = {view: PixelSums.from_histogram(h) for view, h in looked.histograms.items()}
    return task, ShardCheck(damages, pixels, digests)


def check_sha256(name: str, path: Location, expected: str, what: str, remedy: str) -> Damage | None:
    """The damage of a file that is not there, can't be read or has another SHA-256.

    Args:
        name: of the file below the data set's root.
        path: of it.
        expected: SHA-256, hexadecimal.
        what: the file is, to begin a sentence.
        remedy: the sentence that follows, after a space.
    """
    try:
        if sha256(path) == expected:
            return None
    except OSError as error:
        return unreadable(name, what, error, remedy)
    detail = f"{what} is not the one that the manifest describes.{remedy}"
    return Damage(name, "", "", "checksum", detail)


def unreadable(name: str, what: str, error: OSError, remedy: str = "") -> Damage:
    """The damage of a file that the file system does not give; arguments as `check_sha256`."""
    if isinstance(error, FileNotFoundError):
        return Damage(name, "", "", "missing", f"{what} is missing.{remedy}")
    return Damage(name, "", "", "truncated", f"{what} can't be read: {error.strerror}.{remedy}")


def _check_digests(
    root: Location, task: ShardToCheck, rows: list[dict[str, Any]], found: dict[str, np.ndarray]
) -> Iterator[Damage]:
    path = layout.part_path(root, task.split, task.entry.shard)
    indexed = read_digests(path)
    for view, words in (indexed or {}).items():
        for row in np.flatnonzero((words != found[view]).any(axis=1)):
            detail = "Its pixels have another digest than the index says."
            yield Damage(f"{task.split}/{path.name}", rows[row]["key"], view, "index", detail)


def _read_rows(
    root: Location, task: ShardToCheck
) -> tuple[list[dict[str, Any]] | None, list[Damage]]:
    """The index rows of a shard, from its part, or if that is damaged from the merged index.

    What does not have the hash that the manifest gives is never read.
    """
    path = layout.part_path(root, task.split, task.entry.shard)
    name = f"{task.split}/{path.name}"
    merged = None
    if task.table is not None:
        merged = read_table(task.table).slice(task.first_row, task.entry.samples)
    damage = check_sha256(name, path, task.entry.index_sha256, "The index part", "")
    if damage is None:
        try:
            part = read_part(path)
        except (ShardError, InputError) as error:
            damage = Damage(name, "", "", "index", str(error))
    if damage is not None:
        return (None if merged is None else merged.to_pylist()), [damage]
    damages = []
    if part.num_rows != task.entry.samples:
        detail = f"It has {part.num_rows} samples, the manifest says {task.entry.samples}."
        damages.append(Damage(name, "", "", "count", detail))
    if merged is not None and not _same_rows(part, merged):
        detail = "The index part differs from the merged index: finalize again."
        damages.append(Damage(name, "", "", "index", detail))
    return part.to_pylist(), damages


def _same_rows(a: pa.Table, b: pa.Table) -> bool:
    """Equal to the bit; Arrow's own comparison finds NaN different from NaN."""
    if a.num_rows != b.num_rows:
        return False
    return all(
        a[name].to_numpy().tobytes() == b[name].to_numpy().tobytes()
        if pa.types.is_primitive(a[name].type)
        else a[name].to_pylist() == b[name].to_pylist()
        for name in a.column_names
    )


def _check_samples(
    tar: Path,
    name: str,
    rows: list[dict[str, Any]],
    looked: _PixelTotals,
    advance: AdvanceCallback,
) -> Iterator[Damage]:
    """Bytes, checksum and decodability of every part; what is in photographs is added to
    `looked`."""
    with tar.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        for row in rows:
            for part in PARTS:
                offset, size = row[f"{part}_offset"], row[f"{part}_size"]
                if size == 0:
                    if part in VIEWS:
                        looked.digests[part].append(NO_DIGEST)
                    continue
                if size < 0 or offset < 0:
                    detail = f"The index says {size} bytes at byte {offset}."
                    yield Damage(name, row["key"], part, "index", detail)
                    continue
                if offset + size > end:
                    detail = f"The tar ends {offset + size - end} bytes before the part does."
                    yield Damage(name, row["key"], part, "truncated", detail)
                    continue
                data = os.pread(file.fileno(), size, offset)
                if google_crc32c.value(data) != row[f"{part}_crc32c"]:
                    detail = "The bytes are not those that were written."
                    yield Damage(name, row["key"], part, "checksum", detail)
                elif part in IMAGES:
                    yield from _check_image(name, row, part, data, looked)
            advance(1)


def _check_image(
    name: str, row: dict[str, Any], part: str, data: bytes, looked: _PixelTotals
) -> Iterator[Damage]:
    image = f"{row['key']}.{part}"
    try:
        pixels = np.asarray(decode(image, data)) if part == "seg" else decode_photo(image, data)
    except RejectedSample as rejection:
        yield Damage(name, row["key"], part, "undecodable", rejection.detail)
        return
    size, indexed = pixels.shape[:2], (row[f"{part}_height"], row[f"{part}_width"])
    if size != indexed:
        detail = f"The image is {size[0]} x {size[1]}, the index says {indexed[0]} x {indexed[1]}."
        yield Damage(name, row["key"], part, "index", detail)
    if part != "seg":
        looked.histograms[part] = looked.histograms.get(part, 0) + grid_histogram(pixels)
    if part in VIEWS:
        looked.digests[part].append(pixel_digest(pixels))


def _check_members(
    root: Location, tar: Path, task: ShardToCheck, rows: list[dict[str, Any]]
) -> Iterator[Damage]:
    """Check the tar, read sequentially, against the index and the `.idx`."""
    name = f"{task.split}/{tar.name}"
    try:
        with tarfile.open(tar, "r:") as archive:
            members = [_member(info) for info in archive]
    except (tarfile.TarError, EOFError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        yield Damage(name, "", "", "truncated", f"The tar can't be read to its end: {error}.")
        return
    indexed = {
        (row["key"], part, row[f"{part}_offset"], row[f"{part}_size"])
        for row in rows
        for part in PARTS
        if row[f"{part}_size"]
    }
    walked = Counter((m.key, m.part.split(".")[0], m.offset, m.size) for m in members)
    for key, part, offset, _ in sorted(indexed - walked.keys()):
        detail = f"The tar has no such member at byte {offset}."
        yield Damage(name, key, part, "index", detail)
    for key, part, offset, _ in sorted((walked - Counter(indexed)).elements()):
        detail = f"The index does not know the member at byte {offset}."
        yield Damage(name, key, part, "index", detail)
    idx = layout.idx_path(root, task.split, task.entry.shard)
    try:
        if read_bytes(idx) != idx_text(members).encode():
            detail = "It does not describe the tar."
            yield Damage(f"{task.split}/{idx.name}", "", "", "index", detail)
    except OSError as error:
        yield unreadable(f"{task.split}/{idx.name}", "DALI's index", error)


def _member(info: tarfile.TarInfo) -> Member:
    key, _, part = info.name.partition(".")
    return Member(key, part, info.offset_data, info.size)

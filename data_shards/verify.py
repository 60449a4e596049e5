"""Recompute everything that a data set says of itself, and name what is damaged."""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa

from data_shards import layout
from data_shards.errors import ShardError
from data_shards.executor import Advance, no_progress, run_tasks
from data_shards.finalize import sha256
from data_shards.idx import Member, idx_text
from data_shards.images import decode
from data_shards.index import read_part, read_table
from data_shards.manifest import Manifest, ShardEntry, SplitEntry, load
from data_shards.pixels import PixelSums, grid_histogram
from data_shards.sample import IMAGES, PARTS, RejectedSample


class Damage(NamedTuple):
    """One thing that is wrong.

    Args:
        file: relative to the data set's root.
        key: of the sample, empty if the damage is not in one sample.
        part: of the sample, as `ground`; empty likewise.
        reason: a short token: `missing`, `truncated`, `checksum`, `undecodable`, `index`, `count`.
        detail: one sentence.
    """

    file: str
    key: str
    part: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and what was wrong; no damage is a whole data set."""

    shards: int
    samples: int
    damages: list[Damage]


class _ShardCheck(NamedTuple):
    damages: list[Damage]
    pixels: dict[str, PixelSums]


class _Task(NamedTuple):
    """A shard to check; `first_row` is its first in the split's merged index."""

    split: str
    entry: ShardEntry
    first_row: int


def verify(
    root: str | Path, *, workers: int | None = None, progress: Advance | None = None
) -> Verification:
    """Check every byte, index and count of a data set.

    Args:
        root: of the data set.
        workers: processes; None is one a core.
        progress: called with the number of samples checked since the last call.

    Raises:
        InputError, ShardError: there is no readable manifest to check against.
    """
    root = Path(root)
    manifest = load(root)
    damages: list[Damage] = []
    tasks: list[_Task] = []
    for split, entry in manifest.splits.items():
        damages += _check_split(root, split, entry)
        tasks += _tasks(split, entry)
    check = partial(_check_shard, root)
    pixels: dict[tuple[str, str], PixelSums] = {}
    for split, result in run_tasks(check, tasks, workers, progress or no_progress):
        damages += result.damages
        for view, sums in result.pixels.items():
            pixels[split, view] = pixels.get((split, view), PixelSums()) + sums
    if not damages:
        damages += _check_statistics(manifest, pixels)
    samples = sum(split.samples for split in manifest.splits.values())
    return Verification(len(tasks), samples, sorted(damages))


def _tasks(split: str, entry: SplitEntry) -> Iterator[_Task]:
    first_row = 0
    for shard in entry.shards:
        yield _Task(split, shard, first_row)
        first_row += shard.samples


def _check_split(root: Path, split: str, entry: SplitEntry) -> Iterator[Damage]:
    """The merged index, the manifest's sums, and files that do not belong."""
    table = layout.table_path(root, split)
    name = str(table.relative_to(root))
    if not table.exists():
        yield Damage(name, "", "", "missing", "The merged index is missing: finalize again.")
    elif sha256(table) != entry.table_sha256:
        yield Damage(name, "", "", "checksum", "The merged index is damaged: finalize again.")
    sums = (sum(s.samples for s in entry.shards), sum(s.bytes for s in entry.shards))
    if sums != (entry.samples, entry.bytes):
        yield Damage(layout.MANIFEST, "", "", "count", f"The shards of {split} do not add up.")
    known = {layout.tar_path(root, split, s.shard) for s in entry.shards}
    for path in sorted(set((root / split).glob("*.tar")) - known):
        yield Damage(
            str(path.relative_to(root)), "", "", "count", "The manifest knows no such shard."
        )


def _check_statistics(
    manifest: Manifest, pixels: dict[tuple[str, str], PixelSums]
) -> Iterator[Damage]:
    for split, entry in manifest.splits.items():
        found = {view: sums.statistics() for (of, view), sums in pixels.items() if of == split}
        if found != entry.views:
            yield Damage(
                layout.MANIFEST, "", "", "count", f"Mean and deviation of {split} are others."
            )


def _check_shard(root: Path, task: _Task, advance: Advance) -> tuple[str, _ShardCheck]:
    entry = task.entry
    damages = []
    histograms: dict[str, np.ndarray] = {}
    rows, index_damages = _read_rows(root, task)
    damages += index_damages
    tar = layout.tar_path(root, task.split, entry.shard)
    name = str(tar.relative_to(root))
    if not tar.exists():
        detail = f"The tar is missing, and its {entry.samples} samples with it."
        damages.append(Damage(name, "", "", "missing", detail))
    elif rows is not None:
        found = list(_check_samples(tar, name, rows, histograms, advance))
        found += _check_members(root, task, rows)
        if not found and sha256(tar) != entry.sha256:
            found.append(Damage(name, "", "", "checksum", "Bytes between the samples changed."))
        damages += found
    pixels = {view: PixelSums.from_histogram(h) for view, h in histograms.items()}
    return task.split, _ShardCheck(damages, pixels)


def _read_rows(root: Path, task: _Task) -> tuple[list[dict[str, Any]] | None, list[Damage]]:
    """The index rows of a shard, from its part, or if that is damaged from the merged index."""
    path = layout.part_path(root, task.split, task.entry.shard)
    name = str(path.relative_to(root))
    try:
        merged = read_table(layout.table_path(root, task.split))
        merged = merged.slice(task.first_row, task.entry.samples)
    except ShardError:
        merged = None  # `_check_split` has said so
    try:
        part = read_part(path)
    except ShardError as error:
        reason = "checksum" if path.exists() else "missing"
        rows = merged.to_pylist() if merged is not None else None
        return rows, [Damage(name, "", "", reason, str(error))]
    damages = []
    if sha256(path) != task.entry.index_sha256:
        damages.append(Damage(name, "", "", "checksum", "The index part is damaged."))
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
    histograms: dict[str, np.ndarray],
    advance: Advance,
) -> Iterator[Damage]:
    """Bytes, checksum and decodability of every part; adds up the pixels of photographs."""
    with tar.open("rb") as file:
        for row in rows:
            for part in PARTS:
                size = row[f"{part}_size"]
                if size == 0:
                    continue
                data = os.pread(file.fileno(), size, row[f"{part}_offset"])
                if len(data) < size:
                    detail = f"The tar ends {size - len(data)} bytes before the part does."
                    yield Damage(name, row["key"], part, "truncated", detail)
                elif google_crc32c.value(data) != row[f"{part}_crc32c"]:
                    detail = "The bytes are not those that were written."
                    yield Damage(name, row["key"], part, "checksum", detail)
                elif part in IMAGES:
                    yield from _check_image(name, row, part, data, histograms)
            advance(1)


def _check_image(
    name: str, row: dict[str, Any], part: str, data: bytes, histograms: dict[str, np.ndarray]
) -> Iterator[Damage]:
    try:
        image = decode(f"{row['key']}.{part}", data)
    except RejectedSample as rejection:
        yield Damage(name, row["key"], part, "undecodable", rejection.detail)
        return
    size, indexed = (image.height, image.width), (row[f"{part}_height"], row[f"{part}_width"])
    if size != indexed:
        detail = f"The image is {size[0]} x {size[1]}, the index says {indexed[0]} x {indexed[1]}."
        yield Damage(name, row["key"], part, "index", detail)
    if part != "seg":
        histograms[part] = histograms.get(part, 0) + grid_histogram(image)


def _check_members(root: Path, task: _Task, rows: list[dict[str, Any]]) -> Iterator[Damage]:
    """The tar as any reader walks it, against the index and the `.idx`."""
    tar = layout.tar_path(root, task.split, task.entry.shard)
    name = str(tar.relative_to(root))
    try:
        with tarfile.open(tar, "r:") as archive:
            members = [_member(info) for info in archive]
    except (tarfile.TarError, EOFError) as error:
        yield Damage(name, "", "", "truncated", f"The tar can't be walked to its end: {error}.")
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
    if not idx.exists():
        yield Damage(str(idx.relative_to(root)), "", "", "missing", "DALI's index is missing.")
    elif idx.read_bytes() != idx_text(members).encode():
        yield Damage(str(idx.relative_to(root)), "", "", "index", "It does not describe the tar.")


def _member(info: tarfile.TarInfo) -> Member:
    key, _, part = info.name.partition(".")
    return Member(key, part, info.offset_data, info.size)

"""Verification of a data set: recompute what its manifest and index declare, and list damage."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_shards.base.errors import InputError, ShardError
from data_shards.base.store import Location, download, location, sizes
from data_shards.build.executor import AdvanceCallback, no_progress, run_tasks
from data_shards.format import layout
from data_shards.format.duplicates import count_and_list
from data_shards.format.index import VIEWS, read_table
from data_shards.format.manifest import Manifest, SplitEntry, load
from data_shards.format.pixels import PixelSums
from data_shards.inspect.verify_manifest import check_bytes, check_list, check_manifest
from data_shards.inspect.verify_shard import Damage, ShardToCheck, check_sha256, check_shard


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a verification; the data set is intact if `damage` is empty."""

    shards: int
    samples: int
    damages: list[Damage]


def verify(
    root: str | Location, *, workers: int | None = None, progress: AdvanceCallback | None = None
) -> Verification:
    """Check every byte, index and count of a data set.

    Args:
        root: of the data set.
        workers: processes; None is one a core.
        progress: called with the number of samples checked since the last call.

    Raises:
        InputError, ShardError: there is no readable manifest to check against.
    """
    root = location(root)
    manifest = load(root)
    damages: list[Damage] = []
    tasks: list[ShardToCheck] = []
    pixels: dict[tuple[str, str], PixelSums] = {}
    digests: dict[ShardToCheck, dict[str, np.ndarray]] = {}
    with TemporaryDirectory(prefix="smdt-") as folder:
        for split, entry in manifest.splits.items():
            table = _local_table(root, split, Path(folder))
            found = [*_check_table(split, entry, table), *_check_sums(root, split, entry)]
            damages += found
            tasks += _tasks(split, entry, None if found else table)
        check = partial(check_shard, root)
        for task, result in run_tasks(check, tasks, workers, progress or no_progress):
            damages += result.damages
            digests[task] = result.digests
            for view, sums in result.pixels.items():
                pixels[task.split, view] = pixels.get((task.split, view), PixelSums()) + sums
    if not damages:
        damages += _check_statistics(manifest, pixels)
        damages += _check_duplicates(root, manifest, {task: digests[task] for task in tasks})
        damages += check_manifest(root, manifest)
    if not damages:
        damages += check_bytes(root, manifest)
    samples = sum(split.samples for split in manifest.splits.values())
    return Verification(len(tasks), samples, sorted(damages))


def _tasks(split: str, entry: SplitEntry, table: Path | None) -> Iterator[ShardToCheck]:
    first_row = 0
    for shard in entry.shards:
        yield ShardToCheck(split, shard, first_row, table)
        first_row += shard.samples


def _local_table(root: Location, split: str, folder: Path) -> Path:
    """The merged index on this machine, from a store once for all tasks; it may be missing."""
    table = layout.table_path(root, split)
    if isinstance(table, Path):
        return table
    copy = folder / table.name
    with suppress(FileNotFoundError):
        download(table, copy)
    return copy


def _check_table(split: str, entry: SplitEntry, table: Path) -> Iterator[Damage]:
    """The merged index, which is read only if it has the hash that the manifest gives."""
    name = f"{split}/{table.name}"
    damage = check_sha256(name, table, entry.table_sha256, "The merged index", " Finalize again.")
    if damage is not None:
        yield damage
        return
    try:
        rows = read_table(table).num_rows
    except (ShardError, InputError) as error:
        yield Damage(name, "", "", "index", str(error))
        return
    if rows != entry.samples:
        detail = f"It has {rows} samples, the manifest says {entry.samples}."
        yield Damage(name, "", "", "count", detail)


def _check_sums(root: Location, split: str, entry: SplitEntry) -> Iterator[Damage]:
    """The manifest's sums, and files that do not belong."""
    sums = (sum(s.samples for s in entry.shards), sum(s.bytes for s in entry.shards))
    if sums != (entry.samples, entry.bytes):
        yield Damage(layout.MANIFEST, "", "", "count", f"The shards of {split} do not add up.")
    if len({s.shard for s in entry.shards}) < len(entry.shards):
        yield Damage(layout.MANIFEST, "", "", "count", f"{split} has a shard twice.")
    known = {layout.tar_path(root, split, s.shard).name for s in entry.shards}
    for found in sorted(set(sizes(root / split)) - known):
        if found.endswith(".tar"):
            detail = "The manifest knows no such shard."
            yield Damage(f"{split}/{found}", "", "", "count", detail)


def _check_statistics(
    manifest: Manifest, pixels: dict[tuple[str, str], PixelSums]
) -> Iterator[Damage]:
    for split, entry in manifest.splits.items():
        found = {view: sums.statistics() for (of, view), sums in pixels.items() if of == split}
        if found != entry.views:
            yield Damage(
                layout.MANIFEST, "", "", "count", f"Mean and deviation of {split} are others."
            )


def _check_duplicates(
    root: Location, manifest: Manifest, digests: dict[ShardToCheck, dict[str, np.ndarray]]
) -> Iterator[Damage]:
    """The counts and the list, made again from the pixels; an older data set has neither."""
    if any(entry.duplicates is None for entry in manifest.splits.values()):
        return
    found = {
        split: {
            view: np.concatenate([d[view] for task, d in digests.items() if task.split == split])
            for view in VIEWS
        }
        for split in manifest.splits
    }
    counts, listed = count_and_list(root, found)
    for split, entry in manifest.splits.items():
        if counts[split] != entry.duplicates:
            yield Damage(layout.MANIFEST, "", "", "count", f"The duplicates in {split} are others.")
    yield from check_list(root, layout.DUPLICATES, listed)
